"""Bringing the store and its clients together, and keeping for them what outlives an incarnation of the store."""

import fcntl
import os
import socket

import trio
from msgspec import Struct

from kernel.abi import packet
from kernel.abi.hypercalls import XenstoreClosed
from kernel.abi.ids import DomId, Peer
from kernel.abi.status import Refused, Status
from kernel.abi.store_io import SLOT_BYTES, STATE_BYTES
from kernel.abi.upcalls import (
    XenstoreActive,
    XenstoreClient,
    XenstoreDomains,
    XenstoreGone,
    XenstoreIntroduce,
    XenstorePut,
    XenstoreRelease,
    XenstoreStream,
)
from kernel.admin import caller_of, is_administrator
from kernel.core.domains import Kind
from kernel.core.store_nodes import domain_nodes, guest_gone, vbd_nodes, vbd_states
from kernel.core.vbds import Vbd
from kernel.incarnation import post
from kernel.machine import DriverDomain, Incarnation, Machine
from kernel.manifest import Device, DriverManifest, Manifest

__all__ = [
    "backend_active",
    "closed",
    "connect",
    "domain_came",
    "domain_renamed",
    "domain_went",
    "has_store",
    "serve_streams",
    "vbd_changed",
]

MAX_STREAMS = 1024
"""At once. Each costs four descriptors here, of 65,536, and four of the store's 8,192."""

PIPE_BYTES = 8192
"""Of a stream's pipe: the longest message, 4,112 bytes, lies in two pages. The host gives a user so much for 8,000."""


def backend_active(machine: Machine, domain: DriverDomain, backend: Peer) -> None:
    """An incarnation of a driver serves: where it is the store, it gets its memory, and hears of everything."""
    if not _is_store(domain):
        return
    kept, incarnation = machine.xenstore, machine.alive[backend]
    kept.serving = backend
    if kept.state < 0:
        kept.state = _memory("xenstore", STATE_BYTES)
    post(machine, incarnation, XenstoreActive(), descriptors=(os.dup(kept.state),))
    nodes = [put for peer in kept.introduced.values() for put in _described(machine, peer.domid)]
    post(machine, incarnation, XenstoreDomains(tuple(kept.introduced.values())), *nodes)
    for number, descriptors in kept.streams.items():
        post(machine, incarnation, XenstoreStream(number), descriptors=tuple(map(os.dup, descriptors)))
    for peer, descriptor in kept.waiting.items():
        post(machine, incarnation, XenstoreClient(kept.numbers[peer], peer.domid), descriptors=(descriptor,))
    kept.waiting.clear()


def domain_came(machine: Machine, incarnation: Incarnation) -> None:
    """A new incarnation: a guest's is another domain to the store, a driver's is the same over all of them."""
    kept, peer = machine.xenstore, incarnation.peer
    if incarnation.record.kind is not Kind.GUEST and peer.domid in kept.introduced:
        return
    kept.introduced[peer.domid] = peer
    if _active(machine) is not None:
        _tell(machine, XenstoreIntroduce(peer), *_described(machine, peer.domid))


def domain_went(machine: Machine, incarnation: Incarnation) -> None:
    """An incarnation is gone, and its connection with it; if a guest's, its domain too."""
    kept, peer = machine.xenstore, incarnation.peer
    number = kept.numbers.pop(peer, None)
    if peer in kept.waiting:
        os.close(kept.waiting.pop(peer))
    messages: list[Struct] = [] if number is None else [XenstoreGone(number)]
    if incarnation.record.kind is Kind.GUEST and kept.introduced.pop(peer.domid, None) is not None:
        gone = guest_gone(peer.domid, machine.vbds.of_guest(peer.domid))
        messages += [XenstorePut(gone), XenstoreRelease(peer)]
    _tell(machine, *messages)


def domain_renamed(machine: Machine, domid: DomId) -> None:
    """It has another name."""
    if domid in machine.xenstore.introduced:
        _tell(machine, *_described(machine, domid))


def vbd_changed(machine: Machine, vbd: Vbd) -> None:
    """How far the two ends of a vbd are."""
    if vbd.frontend is not None:
        _tell(machine, XenstorePut(vbd_states(vbd, _serving(machine, vbd))))


def connect(machine: Machine, caller: Incarnation) -> int:
    """`XenstoreConnect`: the caller's end of a channel to the store."""
    kept = machine.xenstore
    if not has_store(machine.manifest):
        mend = "have a driver with device = 'xenstore' in the boot manifest"
        raise Refused(Status.ENOENT, f"this hypervisor has no store: {mend}")
    if not caller.record.store_connects.has(1, trio.current_time()):
        raise Refused(Status.EAGAIN, "it connects to the store too often: wait a second")
    if caller.peer not in kept.numbers:
        kept.numbers[caller.peer] = kept.next_number()
    callers, stores = packet.pair()
    store = _active(machine)
    if store is not None:
        message = XenstoreClient(kept.numbers[caller.peer], caller.peer.domid)
        post(machine, store, message, descriptors=(stores.detach(),))
    else:
        if caller.peer in kept.waiting:
            os.close(kept.waiting[caller.peer])
        kept.waiting[caller.peer] = stores.detach()
    return callers.detach()


def closed(machine: Machine, caller: Incarnation, call: XenstoreClosed) -> None:
    """`XenstoreClosed`: a connection has ended. A domain that comes again has another one."""
    if not _is_store(machine.drivers[caller.record.domid]):
        raise Refused(Status.EPERM, "XenstoreClosed is for the store")
    kept = machine.xenstore
    packet.close_all(kept.streams.pop(call.connection, ()))
    for peer in [peer for peer, number in kept.numbers.items() if number == call.connection]:
        del kept.numbers[peer]


def has_store(manifest: Manifest) -> bool:
    """Whether there is a store, and so somebody to pass streams to."""
    return any(driver.device is Device.XENSTORE for driver in manifest.driver)


async def serve_streams(machine: Machine, listening: socket.socket) -> None:
    """Accept administrators' programs, which speak xenstore's wire, as Dom0's."""
    with listening:
        while True:
            await trio.lowlevel.wait_readable(listening)
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionError):
                continue
            with connection:
                _take_stream(machine, connection)


def _take_stream(machine: Machine, connection: socket.socket) -> None:
    kept = machine.xenstore
    uid = caller_of(connection)
    if not is_administrator(uid):
        machine.log.warning("admin.refused", uid=uid)
        return
    if len(kept.streams) >= MAX_STREAMS:
        machine.log.warning("xenstore.refused", streams=MAX_STREAMS)
        return
    connection.setblocking(False)
    into, out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    number = kept.next_number()
    kept.streams[number] = (os.dup(connection.fileno()), into, out, _memory("xenstore-slot", SLOT_BYTES))
    store = _active(machine)
    if store is not None:
        post(machine, store, XenstoreStream(number), descriptors=tuple(map(os.dup, kept.streams[number])))


def _described(machine: Machine, domid: DomId) -> list[XenstorePut]:
    """What stands in the store of one domain."""
    guest = machine.guests.get(domid)
    own = domain_nodes(domid, machine.domains[domid].name, guest.config if guest else None)
    vbds = machine.vbds.of_guest(domid)
    return [XenstorePut(own), *(XenstorePut(vbd_nodes(vbd, _serving(machine, vbd))) for vbd in vbds)]


def _serving(machine: Machine, vbd: Vbd) -> Peer | None:
    active = machine.drivers[vbd.driver].driver.active
    return active if active in machine.alive else None


def _tell(machine: Machine, *messages: Struct) -> None:
    store = _active(machine)
    if store is not None and messages:
        post(machine, store, *messages)


def _active(machine: Machine) -> Incarnation | None:
    """The store that serves."""
    serving = machine.xenstore.serving
    return None if serving is None else machine.alive.get(serving)


def _is_store(domain: DriverDomain) -> bool:
    return isinstance(domain.manifest, DriverManifest) and domain.manifest.device is Device.XENSTORE


def _memory(name: str, size: int) -> int:
    """Sealed, so that whoever maps it is never surprised."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor
