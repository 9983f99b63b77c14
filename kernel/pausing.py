"""Guests that stand still: for the administrator, or because a driver of theirs is given up."""

import trio

from kernel.abi.guest_config import DomainState
from kernel.abi.ids import DOM0, DomId
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import PauseRequested
from kernel.core.pausing import Ask, Pausing, Stand
from kernel.events import wait_any
from kernel.incarnation import post
from kernel.machine import Guest, Incarnation, Machine
from kernel.standing import go_on, stand_still

__all__ = [
    "answered", "hold_all", "hold_anew", "hold_for_dom0", "let_go", "pause", "paused_for", "release_all", "stands",
    "tell_successor", "unpause",
]  # fmt: skip

ANSWER_S = 10.0
"""For a guest's actor to say how it went. It gives its kernel half of that."""


async def pause(machine: Machine, guest: Guest) -> None:
    """Have a guest stand still for the administrator, and return when it does. Refuses where it cannot be."""
    _check_lives(guest)
    _obey(machine, guest, guest.pausing.hold(DOM0))
    pausing = await _settled(guest)
    if pausing.stand is not Stand.PAUSED:
        why = pausing.failure or "another administrator unpaused it"
        raise Refused(Status.EIO, f"guest {guest.config.name} is not paused: {why}")


def hold_for_dom0(machine: Machine, guest: Guest) -> None:
    """Have a guest stand still for the administrator as soon as it can; what comes of it is told as ever."""
    _obey(machine, guest, guest.pausing.hold(DOM0))


async def unpause(machine: Machine, guest: Guest) -> None:
    """Have a guest go on that the administrator had paused, and return when it does. Refuses where it does not."""
    _check_lives(guest)
    _obey(machine, guest, guest.pausing.release(DOM0))
    pausing = await _settled(guest)
    name = guest.config.name
    if pausing.failure and pausing.stand is Stand.PAUSED:
        raise Refused(Status.EIO, f"guest {name} stays paused: {pausing.failure}: tv destroy {name} ends it")
    if drivers := [machine.domains[holder].name for holder in sorted(pausing.holders - {DOM0})]:
        mend = "; ".join(f"tv driver restart {driver}" for driver in drivers)
        raise Refused(Status.EBUSY, f"guest {name} stays paused while {', '.join(drivers)} is given up: {mend}")


def answered(machine: Machine, caller: Incarnation, sequence: int, why: str) -> None:
    """How an order to a guest's actor went (`PauseDone`), or to a native guest's process."""
    guest = machine.guests[caller.record.domid]
    pausing = guest.pausing
    if guest.incarnation is not caller or pausing.settled:
        return
    before = pausing.stand
    ask = pausing.answered(sequence, why)
    if pausing.stand is before:
        return
    name = guest.config.name
    if why:
        machine.log.error("guest.pause_failed", name=name, order=before.value, why=why)
    elif before is Stand.UNPAUSING:
        machine.log.info("guest.unpaused", name=name)
    else:
        machine.log.info("guest.paused", name=name, paused_for=paused_for(machine, guest))
    guest.pause_answered.set()
    guest.pause_answered = trio.Event()
    _obey(machine, guest, ask)


def hold_all(machine: Machine, driver: DomId) -> list[str]:
    """A driver is given up: its guests are to stand still. Their names."""
    guests = _guests_of(machine, driver)
    for guest in guests:
        if guest.incarnation:
            _obey(machine, guest, guest.pausing.hold(driver))
    return [guest.config.name for guest in guests]


def release_all(machine: Machine, driver: DomId) -> None:
    """A driver serves: what stood still for want of it goes on, unless others hold it."""
    for guest in _guests_of(machine, driver):
        if guest.incarnation:
            _obey(machine, guest, guest.pausing.release(driver))


def hold_anew(machine: Machine, guest: Guest) -> None:
    """A new incarnation of a guest: it has to stand still for every driver of it that is given up, and for nobody
    else."""
    guest.pausing = Pausing()
    for driver in dict.fromkeys(vbd.driver for vbd in machine.vbds.of_guest(guest.record.domid)):
        if machine.drivers[driver].driver.state is DomainState.GIVEN_UP:
            _obey(machine, guest, guest.pausing.hold(driver))


def tell_successor(machine: Machine, guest: Guest) -> None:
    """A guest goes on in another process, which has to know."""
    _obey(machine, guest, guest.pausing.again())


def let_go(machine: Machine, guest: Guest) -> bool:
    """The guest is to power off, so it must not stand still for the administrator. False where a driver holds it."""
    _obey(machine, guest, guest.pausing.release(DOM0))
    return not guest.pausing.holders


def stands(guest: Guest) -> bool:
    """Whether it stands still, as far as is known."""
    return guest.pausing.stand in (Stand.PAUSED, Stand.UNPAUSING)


def paused_for(machine: Machine, guest: Guest) -> list[str]:
    """By name, for whom a guest stands still, or is about to."""
    return [machine.domains[holder].name for holder in sorted(guest.pausing.holders)]


def _guests_of(machine: Machine, driver: DomId) -> list[Guest]:
    """The guests with a vbd that this driver serves."""
    domids = dict.fromkeys(vbd.guest for vbd in machine.vbds.of_driver(driver))
    return [machine.guests[domid] for domid in domids]


def _check_lives(guest: Guest) -> None:
    if guest.incarnation is None:
        name = guest.config.name
        raise Refused(Status.EHOSTDOWN, f"guest {name} is {guest.record.state}: tv destroy {name} removes it")


def _obey(machine: Machine, guest: Guest, ask: Ask | None) -> None:
    if ask is None or guest.incarnation is None:
        return
    if guest.config.type == "native":
        machine.nursery.start_soon(_do_itself, machine, guest.incarnation, ask)
    else:
        post(machine, guest.incarnation, PauseRequested(ask.sequence, ask.paused))


async def _do_itself(machine: Machine, incarnation: Incarnation, ask: Ask) -> None:
    """A native guest has no actor that could be told."""
    why = ""
    try:
        if ask.paused:
            await stand_still(machine, incarnation)
        else:
            go_on(machine, incarnation)
    except Refused as refusal:
        why = refusal.why
    if not incarnation.gone.is_set():
        answered(machine, incarnation, ask.sequence, why)


async def _settled(guest: Guest) -> Pausing:
    """Wait until no order is under way. Refuses EHOSTDOWN when the guest ends, ETIMEDOUT when its actor is silent."""
    pausing, incarnation = guest.pausing, guest.incarnation
    assert incarnation is not None
    with trio.move_on_after(ANSWER_S):
        while not pausing.settled and not incarnation.gone.is_set():
            await wait_any(guest.pause_answered, incarnation.gone)
    if incarnation.gone.is_set():
        raise Refused(Status.EHOSTDOWN, f"guest {guest.config.name} ended meanwhile")
    if not pausing.settled:
        raise Refused(Status.ETIMEDOUT, f"guest {guest.config.name} has not said within {ANSWER_S:g} s that it did so")
    return pausing
