"""What holds for every test."""

import os
from collections import Counter

from hypothesis import Phase, settings

from kernel.abi.cache import program_path
from tests.not_possible import lacking

# No test asserts a wall-clock figure, and Hypothesis's deadline for an example is one.
settings.register_profile("triovisor", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("triovisor")

# For mutants: that there is a failing example is enough, however large it is.
settings.register_profile("mutants", settings.get_profile("triovisor"), phases=(Phase.explicit, Phase.generate))

# Tests run programs by name, as a person does who has activated the virtual environment.
os.environ["PATH"] = program_path()


def pytest_terminal_summary(terminalreporter) -> None:
    """Count what was not possible here, and name it."""
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    counted = Counter(lacking(skipped))
    if counted:
        terminalreporter.section(f"{counted.total()} tests not possible here")
        for what, count in counted.items():
            terminalreporter.line(f"{count:4}  {what}")
