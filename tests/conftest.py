"""What holds for every test."""

from collections import Counter

from hypothesis import settings

from tests.not_possible import lacking

# No test asserts a wall-clock figure, and Hypothesis's deadline for an example is one.
settings.register_profile("triovisor", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("triovisor")


def pytest_terminal_summary(terminalreporter) -> None:
    """Count what was not possible here, and name it."""
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    counted = Counter(lacking(skipped))
    if counted:
        terminalreporter.section(f"{counted.total()} tests not possible here")
        for what, count in counted.items():
            terminalreporter.line(f"{count:4}  {what}")
