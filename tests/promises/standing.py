"""Whether a guest stands still, as the host tells it."""

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
    """The CPU time of each process of a guest's operating system: all below the reaper but the actor."""
    actor = actor_of(lab, guest)
    return {
        p.pid: sum(map(int, Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        for p in descendants_of(lab.client.info(guest).pid or 0)
        if p.pid != actor
    }


def assert_stands_still(lab: Lab, guest: str) -> None:
    """That it uses no CPU, and is told to be paused."""
    before = system_ticks(lab, guest)
    assert before
    time.sleep(STILL_S)
    used = sum(system_ticks(lab, guest).values()) - sum(before.values())
    assert used <= 1, f"{used} ticks in {STILL_S} s: at most the one that was nearly over"
    told = lab.client.info(guest)
    assert told.state is DomainState.PAUSED
