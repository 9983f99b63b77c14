"""What was found on a host, and what follows from it: no files, no system calls, only judgement and words."""

import enum
from collections.abc import Sequence

import msgspec
from msgspec import Struct

__all__ = [
    "Answer", "Carried", "Finding", "Jail", "State", "as_json", "carries_all", "jail_of", "one_line", "promises_of",
    "report",
]

JAIL_PARTS = frozenset((
    "namespaces.user", "namespaces.pid", "namespaces.mount", "namespaces.net", "namespaces.ipc", "seccomp", "landlock",
))
"""What the full jail cannot do without."""


BASICS = frozenset(("architecture", "kernel", "python", "pidfd"))
GUESTS = BASICS | {"memfd", "guest-kernel", "guest-modules", "initramfs"}

PROMISES = {
    "a driver that crashes, hangs or breaks its ring costs its guests a pause and nothing acknowledged": GUESTS,
    "the process of a guest's devices that crashes or hangs costs it a pause and nothing acknowledged": GUESTS,
    "a paused guest stands still and goes on where it was": GUESTS,
    "however the hypervisor ends, no process of it and no mount is left": BASICS,
    "no event of a domain that was killed is lost": BASICS,
    "no image has two writers": BASICS | {"ofd-locks"},
    "the log says where a driver hung": BASICS | {"py-spy"},
    "a domain that means harm gets no more than it was given": BASICS | JAIL_PARTS,
}
"""What the parts are for: each promise, and those without which it is not carried."""


class State(enum.StrEnum):
    """`DEGRADED`: it is there, but less of it than it should be."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


class Jail(enum.StrEnum):
    """`REDUCED` lacks one of the walls, and so carries the promises about crashes and hangs only."""

    FULL = "full"
    REDUCED = "reduced"


class Answer(Struct, frozen=True):
    """What a look at the host saw. `mend` is for a cause that only the look could tell; else the part's own holds."""

    state: State
    value: str
    mend: str = ""


class Finding(Struct, frozen=True):
    """One part of the host. `cost` says what it costs to lack it, `mend` is the command that mends that.

    `optional`: every promise can be carried without the part.
    """

    name: str
    state: State
    value: str
    cost: str
    mend: str
    optional: bool


class Carried(Struct, frozen=True):
    """One promise. `lacking`: the missing parts because of which this host cannot carry it."""

    promise: str
    lacking: list[str]


def promises_of(findings: Sequence[Finding]) -> list[Carried]:
    """Which promises the host carries."""
    missing = [finding.name for finding in findings if finding.state is State.MISSING]
    return [Carried(promise, [name for name in missing if name in parts]) for promise, parts in PROMISES.items()]


def jail_of(findings: Sequence[Finding]) -> Jail:
    """The jail that domains get on this host."""
    present = {finding.name for finding in findings if finding.state is not State.MISSING}
    return Jail.FULL if present >= JAIL_PARTS else Jail.REDUCED


def carries_all(findings: Sequence[Finding]) -> bool:
    """Whether this host can carry every promise."""
    return not any(finding.state is State.MISSING and not finding.optional for finding in findings)


def one_line(finding: Finding) -> str:
    """The finding for an error message: `qemu-img missing: …; costs: …; mend: …`."""
    line = f"{finding.name} {finding.state}: {finding.value}"
    return line if finding.state is State.OK else f"{line}; costs: {finding.cost}; mend: {finding.mend}"


def report(findings: Sequence[Finding]) -> str:
    """Line by line, for a person; under what is not well, what that costs and the command that mends it."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.state:<8}  {finding.name:<{width}}  {finding.value}")
        if finding.state is not State.OK:
            lines += [f"{'':<{width + 12}}costs: {finding.cost}", f"{'':<{width + 12}}mend:  {finding.mend}"]
    return "\n".join([*lines, "", *_promise_lines(findings), "", f"jail: {jail_of(findings)}", _verdict(findings)])


def _promise_lines(findings: Sequence[Finding]) -> list[str]:
    return [
        f"NOT carried  {told.promise}; it lacks: {', '.join(told.lacking)}" if told.lacking
        else f"carried      {told.promise}"
        for told in promises_of(findings)
    ]


def as_json(findings: Sequence[Finding]) -> str:
    """The same for a script: `{"ok", "jail", "promises": [{"promise", "lacking"}], "findings": [{"name", "state",
    "value", "cost", "mend", "optional"}]}`."""
    told = {
        "ok": carries_all(findings),
        "jail": jail_of(findings),
        "promises": promises_of(findings),
        "findings": findings,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()


def _verdict(findings: Sequence[Finding]) -> str:
    if carries_all(findings):
        return "This host carries every promise."
    lacking = [f.name for f in findings if f.state is State.MISSING and not f.optional]
    return f"This host cannot carry every promise; it lacks: {', '.join(lacking)}."
