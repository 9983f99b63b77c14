"""What a hypervisor and its helpers hold, so that two moments of a run can be compared."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from tests.promises.processes import descendants_of, status_of

__all__ = ["Holdings", "grown", "holdings_of"]

MEMORY_SLACK_MIB = 8.0
"""Python's heap keeps what its fullest moment took."""

MAPS_SLACK = 16
"""Arenas come and go."""

KEPT = ("log", "console")
"""Folders of a run that grow with it."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Counts. Descriptors, maps and memory are the hypervisor's own; processes are all of its family."""

    descriptors: int
    maps: int
    memory_mib: float
    processes: int
    zombies: int
    mounts: int
    files: int
    """In the run folder, besides logs and consoles."""


def holdings_of(pid: int, run: Path) -> Holdings:
    """What is held now. Between two acts some of it is on its way out: wait for a quiet moment."""
    family = descendants_of(pid)
    return Holdings(
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        maps=len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        memory_mib=int(status_of(pid)["VmRSS"].split()[0]) / 1024,
        processes=len(family),
        zombies=sum(process.state == "Z" for process in family),
        mounts=len(Path(f"/proc/{pid}/mounts").read_text().splitlines()),
        files=sum(file.parent.name not in KEPT for file in run.rglob("*")),
    )


def grown(before: Holdings, after: Holdings) -> dict[str, tuple[float, float]]:
    """What there is more of than before, beyond the slack: name → before, after."""
    slack = {"memory_mib": MEMORY_SLACK_MIB, "maps": MAPS_SLACK}
    pairs = {field.name: (getattr(before, field.name), getattr(after, field.name)) for field in fields(Holdings)}
    return {name: (old, new) for name, (old, new) in pairs.items() if new > old + slack.get(name, 0)}
