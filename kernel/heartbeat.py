"""Is a domain alive, or only there? Asked, waited for, sampled, ended."""

import signal
from pathlib import Path

import trio

from kernel.abi.status import DomainFault
from kernel.abi.upcalls import Ping
from kernel.core.domains import Kind
from kernel.incarnation import end, end_for_fault, post, who
from kernel.machine import Incarnation, Machine
from kernel.sampling import sample

__all__ = ["watch_heartbeat"]

LATE_S = 0.1
"""A hypervisor that has its CPU looks at a deadline within a millisecond."""

SETTLE_S = 0.05
"""From what stirs an idle domain to its ping, which shall not be the first thing in its way."""

BACK_OFF = 4.0
"""How much rarer the next ping of an idle domain is."""

START_DEADLINE_S = 20.0
"""From clone to `Started`. The slowest role imports in a second on a loaded host."""


async def watch_heartbeat(machine: Machine, incarnation: Incarnation) -> None:
    """Ping for as long as the incarnation lives. One that is silent and not in uninterruptible sleep is hung."""
    with trio.move_on_after(START_DEADLINE_S):
        await incarnation.started.wait()
    if not incarnation.started.is_set():
        end_for_fault(machine, incarnation, DomainFault(incarnation.peer, "did not start", after_s=START_DEADLINE_S))
        return
    sequence, interval_s = 0, incarnation.heartbeat.interval_s
    while not incarnation.ended_for:
        sequence, asked_s = (sequence + 1) & 0xFFFF_FFFF, trio.current_time()
        if not await _answers(machine, incarnation, sequence) and not await _revives(machine, incarnation):
            return
        interval_s = await _rest(incarnation, asked_s, interval_s)


async def _rest(incarnation: Incarnation, asked_s: float, interval_s: float) -> float:
    """Wait until it is to be asked again; the next interval. Whoever is idle and hangs is in nobody's way: once a
    domain is wanted, by a post or by a frontend that misses an answer (`XenbusStalled`), it is asked again soon."""
    heartbeat = incarnation.heartbeat
    await trio.sleep_until(asked_s + heartbeat.interval_s)
    with trio.move_on_at(asked_s + interval_s):
        await incarnation.stirred.wait()
        await trio.sleep(SETTLE_S)
    if incarnation.stirred.is_set():
        return heartbeat.interval_s
    return max(heartbeat.interval_s, min(interval_s * BACK_OFF, heartbeat.idle_s))


async def _answers(machine: Machine, incarnation: Incarnation, sequence: int) -> bool:
    """Ask once. In uninterruptible sleep a domain cannot answer and cannot be ended: it is waited for.

    A hypervisor that comes late itself has not looked into the channel meanwhile, and may blame nobody.
    """
    incarnation.awaited_pong, incarnation.ponged = sequence, trio.Event()
    post(machine, incarnation, Ping(sequence))
    incarnation.stirred = trio.Event()
    told = False
    while True:
        with trio.move_on_after(incarnation.heartbeat.deadline_s) as patience:
            await incarnation.ponged.wait()
            incarnation.held = False
            return True
        if trio.current_time() - patience.deadline > LATE_S:
            continue
        if not _in_uninterruptible_sleep(incarnation):
            return False
        if not told:
            machine.log.warning("domain.uninterruptible", **who(incarnation))
            incarnation.held = told = True


async def _revives(machine: Machine, incarnation: Incarnation) -> bool:
    """It is hung. A guest's reaper is told to replace the actor; whoever cannot be helped so, or too often, is ended.
    Whether it answers again."""
    deadline_s = incarnation.heartbeat.deadline_s
    machine.log.error("domain.hung", **who(incarnation), silent_s=deadline_s)
    incarnation.ponged = trio.Event()
    await sample(machine, incarnation)
    if _tell_reaper(incarnation):
        with trio.move_on_after(deadline_s):
            await incarnation.ponged.wait()
            return True
    end(machine, incarnation, f"hung: silent for {deadline_s} s")
    return False


def _tell_reaper(incarnation: Incarnation) -> bool:
    """Have a guest's reaper end its actor. False where there is none, or this was of no use before."""
    reaper = incarnation.child if incarnation.record.kind is Kind.GUEST else None
    if reaper is None or not incarnation.hangs.has(1, trio.current_time()):
        return False
    try:
        signal.pidfd_send_signal(reaper.pidfd, signal.SIGUSR1)
    except ProcessLookupError:
        return False
    return True


def _in_uninterruptible_sleep(incarnation: Incarnation) -> bool:
    """Whether a thread of it is in state D (proc_pid_stat(5)), as one is that waits for a disk that does not answer."""
    if incarnation.child is None:
        return False
    for stat in Path(f"/proc/{incarnation.child.pid}/task").glob("*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "D":
                return True
        except OSError:
            continue
    return False
