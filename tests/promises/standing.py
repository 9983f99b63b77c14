"""Whether a guest stands still, as the host tells it."""

import contextlib
import time
from pathlib import Path

from kernel.abi.guest_config import DomainState
from tests.promises.actors import actor_of
from tests.promises.lab import Lab
from tests.promises.processes import descendants_of

__all__ = ["STILL_S", "assert_stands_still", "system_ticks"]

STILL_S = 0.5
"""For which it is watched. A guest under load would use most of that."""


def system_ticks(lab: Lab, guest: str) -> dict[int, int]:
    """The CPU time of each process of a guest's operating system, as the host tells it: all below the reaper but the
    actor. Of one that runs a process may have ended since it was seen."""
    actor = actor_of(lab, guest)
    ticks = {}
    for process in descendants_of(lab.client.info(guest).pid or 0):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks[process.pid] = int(fields[11]) + int(fields[12])
    ticks.pop(actor, None)
    return ticks


def assert_stands_still(lab: Lab, guest: str) -> None:
    """That it uses no CPU, and is told to be paused."""
    before = system_ticks(lab, guest)
    assert before
    time.sleep(STILL_S)
    used = sum(system_ticks(lab, guest).values()) - sum(before.values())
    assert used <= 1, f"{used} ticks in {STILL_S} s: at most the one that was nearly over"
    told = lab.client.info(guest)
    assert told.state is DomainState.PAUSED
