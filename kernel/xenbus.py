"""Bringing the two ends of each vbd together: who is told of whom, when a backend or a guest comes or goes.

Messages on one channel keep their order, so a backend always hears of a vbd before its ring or its image.
"""

import time

from kernel.abi.hypercalls import XenbusConnect, XenbusConnected, XenbusFault, XenbusStalled
from kernel.abi.ids import DomId, Peer
from kernel.abi.status import DomainFault, Refused, Status
from kernel.abi.upcalls import (
    BackendActive,
    BackendOffered,
    BackendWithdrawn,
    VbdAttached,
    VbdBacking,
    VbdConnected,
    VbdDetached,
    VbdImage,
    VbdRing,
)
from kernel.core.drivers import Activate
from kernel.core.unheard import News
from kernel.core.vbds import Vbd
from kernel.incarnation import end_for_fault, post, who
from kernel.machine import Incarnation, Machine
from kernel.xenstore import vbd_changed

__all__ = [
    "accuse",
    "activate_backend",
    "backend_came",
    "backend_went",
    "connect",
    "connected",
    "fault",
    "frontend_came",
    "frontend_reset",
    "frontend_went",
    "stalled",
]

ACCUSATIONS, ACCUSATIONS_WINDOW_S = 5, 60.0
"""A guest may have so many backends ended for broken rings. One that finds more is itself what is broken, or a liar."""


def backend_came(machine: Machine, backend: Incarnation) -> None:
    """A new incarnation of a driver: tell it of its vbds, and their frontends of it."""
    for vbd in machine.vbds.of_driver(backend.record.domid):
        if vbd.frontend is not None:
            _introduce(machine, vbd, backend)


def activate_backend(machine: Machine, order: Activate) -> None:
    """Hand every image to this incarnation. The caller has seen all its predecessors gone: having the image is
    the leave to serve."""
    backend = machine.alive[order.peer]
    for vbd in machine.vbds.of_driver(backend.record.domid):
        if vbd.frontend is not None:
            _activate(machine, vbd, backend, order.take_published)
            vbd_changed(machine, vbd)


def backend_went(machine: Machine, driver: DomId, peer: Peer) -> None:
    """An incarnation of a driver is gone: tell the frontends."""
    for vbd in machine.vbds.of_driver(driver):
        vbd.rings.pop(peer, None)
        _tell(machine, vbd, BackendWithdrawn(vbd.handle, peer))
        vbd_changed(machine, vbd)


def frontend_came(machine: Machine, guest: Incarnation) -> None:
    """A new incarnation of a guest: introduce it to every incarnation of each of its backends."""
    for vbd in machine.vbds.of_guest(guest.record.domid):
        vbd.frontend = guest.peer
        driver = machine.drivers[vbd.driver].driver
        for peer in (driver.active, driver.standby):
            if peer in machine.alive:
                _introduce(machine, vbd, machine.alive[peer])
        if driver.active in machine.alive:
            _activate(machine, vbd, machine.alive[driver.active], take_published=False)


def frontend_reset(machine: Machine, guest: Incarnation) -> None:
    """A guest goes on in another process, whose rings are still to be made: offer it every backend anew, those that
    serve first. They keep their images, and take a new ring in the place of the earlier one."""
    vbds = machine.vbds.of_guest(guest.record.domid)
    for vbd in vbds:
        vbd.rings.clear()
    for vbd in vbds:
        active = machine.drivers[vbd.driver].driver.active
        if active in machine.alive:
            post(machine, guest, BackendOffered(vbd.handle, active), BackendActive(vbd.handle, active, False))
        vbd_changed(machine, vbd)
    for vbd in vbds:
        standby = machine.drivers[vbd.driver].driver.standby
        if standby in machine.alive:
            post(machine, guest, BackendOffered(vbd.handle, standby))


def frontend_went(machine: Machine, guest: DomId) -> None:
    """An incarnation of a guest is gone: its backends forget it, rings and images both."""
    for vbd in machine.vbds.of_guest(guest):
        vbd.frontend = None
        vbd.rings.clear()
        driver = machine.drivers[vbd.driver].driver
        for peer in (driver.active, driver.standby):
            if peer in machine.alive:
                post(machine, machine.alive[peer], VbdDetached(vbd.handle))


def connect(machine: Machine, caller: Incarnation, call: XenbusConnect) -> None:
    """`XenbusConnect`: pass a frontend's ring on to the backend it was made for."""
    machine.domains.check_alive(call.backend)
    vbd = machine.vbds.connect(caller.peer, call.handle, call.backend)
    ring = VbdRing(call.handle, caller.peer, call.out_ref, call.in_ref, call.port)
    post(machine, machine.alive[call.backend], ring)
    vbd_changed(machine, vbd)


def connected(machine: Machine, caller: Incarnation, call: XenbusConnected) -> None:
    """`XenbusConnected`: tell the frontend that its ring is mapped."""
    machine.domains.check_alive(call.frontend)
    vbd = machine.vbds.connected(caller.peer, call.handle, call.frontend)
    post(machine, machine.alive[call.frontend], VbdConnected(call.handle, caller.peer))
    vbd_changed(machine, vbd)
    machine.log.info(
        "vbd.connected", vbd=vbd.vdev, handle=vbd.handle, frontend=str(call.frontend), backend=str(caller.peer)
    )


def fault(machine: Machine, caller: Incarnation, call: XenbusFault) -> None:
    """`XenbusFault`: one end of a vbd says that the other broke the ring's rules."""
    machine.domains.check_alive(call.peer)
    vbd = machine.vbds.shared_by(caller.peer, call.handle, call.peer)
    accuse(machine, caller, machine.alive[call.peer], call.what, call.evidence, vbd=vbd.vdev)


def accuse(
    machine: Machine, caller: Incarnation, accused: Incarnation, what: str, evidence: str, *, vbd: str
) -> None:
    """Act on the word of one end of a ring about the other.

    The hypervisor cannot see the ring, so it cannot judge. It ends the accused, since that costs a driver's guests no
    more than a pause; but a guest that accuses too often is ended instead, or it could hold up all others on the
    driver.
    """
    if accused.ended_for:
        end_for_fault(machine, accused, DomainFault(accused.peer, what, evidence=evidence))
        raise Refused(Status.ESTALE, f"{accused.peer} is being ended")
    machine.log.error("ring.faulted", **who(caller), accused=str(accused.peer), vbd=vbd, what=what, evidence=evidence)
    if caller.record.domid in machine.guests and _accuses_too_often(machine, caller):
        end_for_fault(
            machine, caller, DomainFault(caller.peer, "accuses its backends too often", accusations=ACCUSATIONS)
        )
        return
    end_for_fault(machine, accused, DomainFault(accused.peer, what, evidence=evidence))


def stalled(machine: Machine, caller: Incarnation, call: XenbusStalled) -> None:
    """`XenbusStalled`: a backend that was idle as far as we know may hang."""
    machine.domains.check_alive(call.backend)
    machine.vbds.shared_by(caller.peer, call.handle, call.backend)
    machine.alive[call.backend].stirred.set()


def _accuses_too_often(machine: Machine, caller: Incarnation) -> bool:
    guest = machine.guests[caller.record.domid]
    now = time.monotonic()
    guest.accusations_s = [*(t for t in guest.accusations_s if t > now - ACCUSATIONS_WINDOW_S), now]
    return len(guest.accusations_s) > ACCUSATIONS


def _introduce(machine: Machine, vbd: Vbd, backend: Incarnation) -> None:
    post(machine, backend, VbdAttached(vbd.handle, vbd.sectors, vbd.read_only))
    _tell(machine, vbd, BackendOffered(vbd.handle, backend.peer))


def _activate(machine: Machine, vbd: Vbd, backend: Incarnation, take_published: bool) -> None:
    """A vbd whose image cannot be opened once more waits, as one without a driver does; others go on."""
    image = machine.images[vbd.handle]
    try:
        if image.backing is not None:
            post(machine, backend, VbdBacking(vbd.handle), descriptors=(image.backing.take(),))
        descriptor = image.take()
    except Refused as refusal:
        machine.log.error("vbd.unserved", vbd=vbd.vdev, handle=vbd.handle, backend=str(backend.peer), why=refusal.why)
        return
    post(machine, backend, VbdImage(vbd.handle), descriptors=(descriptor,))
    _tell(machine, vbd, BackendActive(vbd.handle, backend.peer, take_published))


def _tell(machine: Machine, vbd: Vbd, news: News) -> None:
    """The frontend, if there is one: now, or when it goes on."""
    frontend = machine.alive.get(vbd.frontend) if vbd.frontend is not None else None
    if frontend is None:
        return
    if frontend.stopped:
        frontend.unheard.add(news)
    else:
        post(machine, frontend, news)
