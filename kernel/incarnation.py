"""What may be done to one incarnation: tell it something, end it, blame it."""

import signal

import trio
from msgspec import Struct

from kernel.abi.status import DomainFault
from kernel.core.domains import Life
from kernel.machine import Incarnation, Machine

__all__ = ["OVERSTAYED", "end", "end_for_fault", "kill", "post", "who"]

OVERSTAYED = "said that it ends, and stayed"
"""Why a domain was ended that had shut down by its own word: that word still counts."""

UNKILLABLE_AFTER_S = 5.0
"""A killed process that is still there is in uninterruptible sleep. It is waited for, and never fenced by time."""


def post(machine: Machine, incarnation: Incarnation, *messages: Struct, descriptors: tuple[int, ...] = ()) -> None:
    """Post upcalls. A domain that lets them pile up has broken the ABI and is ended."""
    incarnation.stirred.set()
    try:
        incarnation.link.post(messages, descriptors)
    except DomainFault as fault:
        end_for_fault(machine, incarnation, fault)


def who(incarnation: Incarnation) -> dict[str, object]:
    """Whose event it is, as fields for the log."""
    return {"name": incarnation.record.name, "peer": str(incarnation.peer)}


def end(machine: Machine, incarnation: Incarnation, why: str) -> None:
    """End an incarnation at once, all its threads and processes. `on_gone` comes when it is."""
    if incarnation.ended_for:
        return
    incarnation.ended_for = why
    machine.domains.advance(incarnation.peer, Life.ENDING)
    kill(incarnation)
    machine.nursery.start_soon(_tell_if_unkillable, machine, incarnation)


def end_for_fault(machine: Machine, incarnation: Incarnation, fault: DomainFault) -> None:
    """The incarnation broke the ABI: log the evidence and end it. Of one that is being ended, only believe less."""
    if not incarnation.ended_for:
        machine.log.error("domain.faulted", **who(incarnation), what=fault.what, evidence=fault.evidence)
    if incarnation.record.domid in machine.drivers:
        machine.drivers[incarnation.record.domid].driver.accused(incarnation.peer)
    end(machine, incarnation, f"fault: {fault.what}")


def kill(incarnation: Incarnation) -> None:
    """PID 1 of its namespace dies, and the kernel takes all others of the namespace with it."""
    if incarnation.child is None:
        return
    try:
        signal.pidfd_send_signal(incarnation.child.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return


async def _tell_if_unkillable(machine: Machine, incarnation: Incarnation) -> None:
    with trio.move_on_after(UNKILLABLE_AFTER_S):
        await incarnation.gone.wait()
        return
    incarnation.held = True
    machine.log.critical("domain.unkillable", **who(incarnation), after_s=UNKILLABLE_AFTER_S)
