"""What holds for every test."""

from hypothesis import Phase, settings

# No test asserts a wall-clock figure, and Hypothesis's deadline for an example is one.
settings.register_profile("triovisor", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("triovisor")

# For mutants: that there is a failing example is enough, however large it is.
settings.register_profile("mutants", settings.get_profile("triovisor"), phases=(Phase.explicit, Phase.generate))
