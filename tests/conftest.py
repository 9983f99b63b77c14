"""What holds for every test."""

from hypothesis import settings

# No test asserts a wall-clock figure, and Hypothesis's deadline for an example is one.
settings.register_profile("triovisor", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("triovisor")
