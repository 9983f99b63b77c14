"""A native guest is one process, and stands still by the host kernel's own means, whatever its program does.

Who is stopped neither answers nor reads: its heartbeat waits, and what it is to be told of its backends is kept short
(`kernel.core.unheard`). A PV guest is stopped by its actor, which goes on itself.
"""

import math
import signal
from pathlib import Path

import trio

from kernel.abi.status import Refused, Status
from kernel.events import wait_any
from kernel.incarnation import post
from kernel.machine import Incarnation, Machine

__all__ = ["go_on", "stand_still"]

START_S = 5.0
"""For a guest that has just been ordered to start."""

STOP_S = 2.0
"""For each thread to stop: at once, but for one in uninterruptible sleep."""

LOOK_S = 0.001


async def stand_still(machine: Machine, incarnation: Incarnation) -> None:
    """Stop it, and return when no thread of it runs. Refuses, and lets it go on, where that is not so in time."""
    with trio.move_on_after(START_S):
        await wait_any(incarnation.started, incarnation.gone)
    if incarnation.gone.is_set():
        raise Refused(Status.EHOSTDOWN, "it has ended")
    if incarnation.child is None or not incarnation.started.is_set():
        raise Refused(Status.ETIMEDOUT, f"it has not started within {START_S:g} s")
    incarnation.stood_until_s = math.inf
    _signal(incarnation, signal.SIGSTOP)
    with trio.move_on_after(STOP_S):
        while True:
            if incarnation.gone.is_set() or not _runs(incarnation.child.pid):
                return
            await trio.sleep(LOOK_S)
    go_on(machine, incarnation)
    raise Refused(Status.ETIMEDOUT, f"a thread of it does not stop within {STOP_S:g} s")


def go_on(machine: Machine, incarnation: Incarnation) -> None:
    """Let it go on, and tell it what became of its backends."""
    if incarnation.gone.is_set():
        return
    incarnation.stood_until_s = trio.current_time()
    _signal(incarnation, signal.SIGCONT)
    for news in incarnation.unheard.take():
        post(machine, incarnation, news)


def _signal(incarnation: Incarnation, number: signal.Signals) -> None:
    if incarnation.child is not None:
        try:
            signal.pidfd_send_signal(incarnation.child.pidfd, number)
        except ProcessLookupError:
            return


def _runs(pid: int) -> bool:
    """Whether any thread is in another state than stopped or dead (proc_pid_stat(5))."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "TtZX":
            return True
    return False
