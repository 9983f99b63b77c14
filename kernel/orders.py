"""Orders to a PV guest's actor that are answered once: a key of SysRq, a core of its memory."""

from collections.abc import Callable

import trio
from msgspec import Struct

from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import SysrqRequested
from kernel.events import wait_any
from kernel.incarnation import post
from kernel.machine import ActorOrder, Guest, Machine

__all__ = ["actor_replaced", "answered", "carry_out", "check_runs_linux", "press_sysrq"]


SYSRQ_S = 10.0
"""For a guest's kernel to hear a key: a millisecond, or a second where it boots on a busy host."""


def check_runs_linux(guest: Guest, what: str) -> None:
    """Refuse a guest that has no `what`: a native one (EINVAL), and one that has ended (EHOSTDOWN)."""
    name = guest.config.name
    if guest.config.type == "native":
        raise Refused(Status.EINVAL, f'guest {name} is a native one and has no {what}: name one with type = "pv"')
    if guest.incarnation is None:
        raise Refused(Status.EHOSTDOWN, f"guest {name} is {guest.record.state}: tv destroy {name} removes it")


async def press_sysrq(machine: Machine, guest: Guest, key: str) -> None:
    """Tell a guest's kernel a key of Magic SysRq. Refuses as `carry_out`."""
    check_runs_linux(guest, "kernel to be told a key")
    if not key:
        raise Refused(Status.EINVAL, f"guest {guest.config.name}: which key? SysRq h has its kernel list them")
    if guest.pausing.holders:
        raise Refused(Status.EHOSTDOWN, f"guest {guest.config.name} is paused and hears no key: tv unpause it first")
    await carry_out(machine, guest, lambda order: SysrqRequested(order, key), SYSRQ_S)


async def carry_out(
    machine: Machine,
    guest: Guest,
    message: Callable[[int], Struct],
    deadline_s: float,
    descriptors: tuple[int, ...] = (),
) -> None:
    """Order it and wait until it is done. The descriptors are given away.

    Refuses EIO what the actor could not do, ETIMEDOUT where it says nothing, EHOSTDOWN where the guest ends.
    """
    incarnation, name = guest.incarnation, guest.config.name
    assert incarnation is not None
    number, order = guest.last_order + 1 & 0xFFFF_FFFF, ActorOrder()
    guest.last_order = number
    guest.orders[number] = order
    try:
        post(machine, incarnation, message(number), descriptors=descriptors)
        with trio.move_on_after(deadline_s):
            await wait_any(order.done, incarnation.gone)
    finally:
        del guest.orders[number]
    if order.why:
        raise Refused(Status.EIO, f"guest {name}: {order.why}")
    if incarnation.gone.is_set():
        raise Refused(Status.EHOSTDOWN, f"guest {name} ended meanwhile")
    if not order.done.is_set():
        raise Refused(Status.ETIMEDOUT, f"guest {name} has not done it within {deadline_s:g} s: tv dmesg {name}")


def answered(guest: Guest, number: int, why: str) -> None:
    """How it went (`OrderDone`). An order that nobody waits for any more is no concern."""
    if number in guest.orders:
        guest.orders[number].why = why
        guest.orders[number].done.set()


def actor_replaced(guest: Guest) -> None:
    """A successor has heard of none of them."""
    for number in list(guest.orders):
        answered(guest, number, "the process of its devices was replaced meanwhile: try again")
