"""What this host has, what is missing, what that costs, and the command that mends it: `python -m kernel doctor`.

Promises: kernel features are tried, not guessed from version numbers; nothing on the host is changed.
"""

from kernel.abi.status import KernelBug
from kernel.doctor.finding import Finding, State, as_json, carries_all, one_line, report
from kernel.doctor.parts import PARTS, Part

__all__ = ["PartMissing", "examine", "main", "require"]


class PartMissing(Exception):
    """The host lacks a part that is needed here. The text is the doctor's line."""


def examine() -> list[Finding]:
    """Look at every part of the host, in the order of the report."""
    return [_look_at(part) for part in PARTS]


def require(name: str) -> None:
    """Do nothing if the host has the part of this name, as the report names it; else raise PartMissing."""
    part = next((part for part in PARTS if part.name == name), None)
    if part is None:
        raise KernelBug(f"the doctor knows no part {name!r}")
    finding = _look_at(part)
    if finding.state is State.MISSING:
        raise PartMissing(one_line(finding))


def main(json: bool) -> int:
    """Print the report. Returns the exit status: 0 when this host can carry every promise, else 1."""
    findings = examine()
    print(as_json(findings) if json else report(findings))
    return 0 if carries_all(findings) else 1


def _look_at(part: Part) -> Finding:
    return part.finding(part.answer())
