"""Having a guest's operating system stand still, and go on: by its management console, and believed only when its
processes use no CPU any more.

Never by SIGSTOP: processes of User-Mode Linux that trace each other would go on running, or panic the guest.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from domains.guests.mconsole import Mconsole
from kernel.abi.status import DomainFault, Refused, Status

__all__ = ["DEADLINE_S", "ProcessLook", "Standing", "look_at_system", "stood_still"]

DEADLINE_S = 5.0
"""For a kernel to do as it is told. It takes a millisecond; one that boots on a busy host, a second."""

LOOK_S = 0.02
"""Between two looks at its processes: two ticks of the clock in which CPU time is told."""

_OBEYED = {"stop": ("stopped", "Already stopped"), "go": ("", "Not stopped")}
"""What the kernel says when it does as it is told, and when it had done so already."""


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """A process at one moment: its state as proc_pid_stat(5) names it, and its CPU time in ticks."""

    state: str
    parent: int
    ticks: int


def stood_still(before: dict[int, ProcessLook], after: dict[int, ProcessLook]) -> bool:
    """Whether between two looks, two ticks apart, none of them ran. One that waits for a CPU is in state R."""
    still = all(look.state != "R" for looks in (before, after) for look in looks.values())
    return still and {pid: look.ticks for pid, look in before.items()} == {p: look.ticks for p, look in after.items()}


def look_at_system() -> dict[int, ProcessLook]:
    """The operating system's processes: all that descend from the reaper, but for this one, the actor."""
    everybody = dict(_everybody())
    family = {os.getppid()}
    while new := {pid for pid, look in everybody.items() if look.parent in family} - family - {os.getpid()}:
        family |= new
    return {pid: everybody[pid] for pid in family - {os.getppid()}}


def _everybody() -> Iterator[tuple[int, ProcessLook]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(name), ProcessLook(fields[0], int(fields[1]), int(fields[11]) + int(fields[12]))


class Standing:
    """One operating system. `pause` and `unpause` may be said again; one at a time."""

    def __init__(self, mconsole: Mconsole) -> None:
        self._mconsole = mconsole

    async def pause(self) -> None:
        """Return when it stands still. Where it does not, it is told to go on, and ETIMEDOUT or EIO is refused."""
        try:
            with trio.fail_after(DEADLINE_S):
                await self._obeyed("stop")
                await _still()
        except trio.TooSlowError:
            self._mconsole.tell("go")
            raise Refused(Status.ETIMEDOUT, f"its kernel does not stand still within {DEADLINE_S:g} s") from None
        except Refused:
            self._mconsole.tell("go")
            raise

    async def unpause(self) -> None:
        """Return when it goes on. Refuses ETIMEDOUT and EIO where it does not."""
        try:
            with trio.fail_after(DEADLINE_S):
                await self._obeyed("go")
        except trio.TooSlowError:
            raise Refused(Status.ETIMEDOUT, f"its kernel does not go on within {DEADLINE_S:g} s") from None

    async def _obeyed(self, command: str) -> None:
        try:
            said = await self._mconsole.ask(command)
        except (DomainFault, OSError) as error:
            raise Refused(Status.EIO, f"its kernel cannot be told to {command}: {error}") from error
        if said.text not in _OBEYED[command]:
            raise Refused(Status.EIO, f"its kernel was told to {command} and says {said.text[:80]!r}")


async def _still() -> None:
    """Two looks in a row that differ in nothing."""
    before = look_at_system()
    while True:
        await trio.sleep(LOOK_S)
        after = look_at_system()
        if stood_still(before, after):
            return
        before = after
