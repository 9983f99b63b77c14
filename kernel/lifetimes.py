"""The life of one incarnation, from the order to clone it to the last of its threads."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import trio

from kernel.abi import packet
from kernel.abi.ids import DomId
from kernel.abi.keeping import PipeKind
from kernel.abi.spawn import Identity, Jail
from kernel.abi.upcalls import PeerDied
from kernel.core.domains import Life
from kernel.heartbeat import watch_heartbeat
from kernel.incarnation import kill, post, who
from kernel.link import Link
from kernel.machine import Incarnation, Machine
from kernel.manifest import Heartbeat
from kernel.serving import drain, serve
from kernel.spawn import Order, SpawnError
from kernel.xenstore import domain_came, domain_went

__all__ = ["Body", "embody"]


@dataclass(frozen=True, slots=True)
class Body:
    """What an incarnation is made of: role module, jail, the role's packed start struct, descriptors to be born with
    (given away). A guest has a `console` pipe besides.
    """

    role: str
    jail: Jail
    config: bytes
    descriptors: dict[str, int]
    heartbeat: Heartbeat
    console: bool = False


def embody(machine: Machine, domid: DomId, body: Body, on_gone: Callable[[Incarnation, str], None]) -> Incarnation:
    """Begin an incarnation. It takes packets at once; `on_gone(incarnation, how)` follows its end, once,
    whatever happens."""
    peer = machine.domains.incarnate(domid)
    ours, theirs = packet.pair()
    record = machine.domains[domid]
    incarnation = Incarnation(peer, record, Link(ours), body.heartbeat, on_gone, trio.current_time())
    machine.alive[peer] = incarnation
    domain_came(machine, incarnation)
    descriptors = {
        "control": theirs.detach(),
        "log": machine.keeper.keep(peer, record.name, PipeKind.LOG),
        **body.descriptors,
    }
    if body.console:
        descriptors["console"] = machine.keeper.keep(peer, record.name, PipeKind.CONSOLE)
    order = machine.zygotes.order(body.role, Identity(record.name, peer), body.jail, body.config, descriptors)
    machine.nursery.start_soon(_live, machine, incarnation, order)
    return incarnation


async def _live(machine: Machine, incarnation: Incarnation, order: Order) -> None:
    """One nursery is the lifetime of what the hypervisor does for this incarnation."""
    try:
        child = await order.child()
    except SpawnError as error:
        _bury(machine, incarnation, str(error))
        incarnation.link.close()
        return
    finally:
        packet.close_all(order.descriptors)
    incarnation.child = child
    machine.log.info("domain.cloned", **who(incarnation), pid=child.pid, jail=child.jail, missing=child.missing)
    if incarnation.ended_for:
        kill(incarnation)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(incarnation.link.flush_forever)
        nursery.start_soon(serve, machine, incarnation)
        nursery.start_soon(watch_heartbeat, machine, incarnation)
        await trio.lowlevel.wait_readable(child.pidfd)
        drain(machine, incarnation)
        _bury(machine, incarnation, _reap(child.pidfd))
        nursery.cancel_scope.cancel()
    incarnation.link.close()
    trio.lowlevel.notify_closing(child.pidfd)
    os.close(child.pidfd)


def _bury(machine: Machine, incarnation: Incarnation, how: str) -> None:
    """It is gone. First whoever decides what follows, since guests wait for that; then the tables and the peers."""
    peer = incarnation.peer
    machine.domains.advance(peer, Life.GONE)
    del machine.alive[peer]
    incarnation.gone.set()
    domain_went(machine, incarnation)
    how = incarnation.ended_for or incarnation.detail or how
    incarnation.on_gone(incarnation, how)
    shared = machine.evtchn.died(peer)
    packet.close_all(machine.grants.died(peer))
    for other in shared:
        if other in machine.alive:
            post(machine, machine.alive[other], PeerDied(peer))
    lived_s = round(trio.current_time() - incarnation.born_s, 3)
    machine.log.warning("domain.died", **who(incarnation), how=how, lived_s=lived_s)


def _reap(pidfd: int) -> str:
    """How it ended, in words."""
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if result is None:
        return "ended"
    if result.si_code == os.CLD_EXITED:
        return f"exit status {result.si_status}"
    return f"killed by {signal.Signals(result.si_status).name}"
