"""A guest's vbds: a ring for each incarnation of each backend, as the hypervisor tells of them."""

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from domains.frontends.backing import Backing
from domains.frontends.blkfront import BlkfrontLoop, VbdFront
from domains.guests.reaper import socket_path
from domains.runtime.domain import Call, Domain
from domains.runtime.numbers import Numbers
from domains.runtime.turn import wait_turn
from kernel.abi.guest_config import MIB
from kernel.abi.hypercalls import (
    Access,
    ChannelKind,
    EvtchnAllocUnbound,
    GnttabGrant,
    XenbusConnect,
    XenbusFault,
    XenbusStalled,
)
from kernel.abi.ids import GrantRef, Peer, Port, VbdHandle
from kernel.abi.io.blkif import RING_BYTES, SMALL_RING_BYTES
from kernel.abi.roles import GuestVbd
from kernel.abi.status import Refused
from kernel.abi.upcalls import BackendActive, BackendOffered, BackendWithdrawn

__all__ = ["Disks", "size_of_rings"]

SPARE_AFTER_S = 0.1
"""A spare ring is made only so long after the last one was taken: its milliseconds of CPU would come just when the
guest's requests are to go to another backend."""


@dataclass(frozen=True, slots=True)
class _Ring:
    """The numbers that one ring uses."""

    out_ref: GrantRef
    in_ref: GrantRef
    port: Port


def size_of_rings(memory_mib: int, vbds: int) -> int:
    """Of either grant of a ring: large, unless a guest's rings would take more than its memory once more. Each vbd has
    one for the backend that serves and one for its standby, and the guest one to spare."""
    large = (2 * vbds + 1) * 2 * RING_BYTES
    return RING_BYTES if large <= memory_mib * MIB else SMALL_RING_BYTES


class Disks:
    """What the hypervisor says of backends, handed to the block loop; what the loop finds, told to the hypervisor."""

    def __init__(
        self,
        domain: Domain,
        nursery: trio.Nursery,
        vbds: list[GuestVbd],
        ring_bytes: int,
        ports: Numbers,
        refs: Numbers,
        on_guest_fault: Callable[[str], None],
    ) -> None:
        self._domain = domain
        self._nursery = nursery
        self._ports = ports
        self._on_guest_fault = on_guest_fault
        self._refs = refs
        self._new_backing = partial(Backing.create, ring_bytes)
        self._rings: dict[tuple[VbdHandle, Peer], _Ring] = {}
        self._bells: dict[Port, tuple[VbdHandle, Peer]] = {}
        self._spare: Backing | None = None
        self._waiting = trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()
        self.paths: list[str] = []
        fronts = []
        for vbd in vbds:
            self.paths.append(socket_path(vbd))
            line = socket.socket(fileno=domain.descriptors[f"vhost.{vbd.vdev}"])
            in_flight = domain.descriptors[f"in-flight.{vbd.vdev}"]
            fronts.append(VbdFront(vbd.handle, vbd.vdev, vbd.sectors, vbd.read_only, line, in_flight))
        self.loop = BlkfrontLoop(fronts, self._loop_found_fault, self._loop_found_stall)

    def start(self) -> None:
        """Let the guest's kernel connect. Its requests wait until a backend is active."""
        if self.paths:
            self._nursery.start_soon(self._make_spare)
        self.loop.start()

    async def beat(self) -> None:
        """Return once the loop has turned."""
        await wait_turn(self.loop.submit)

    async def offered(self, offer: BackendOffered) -> None:
        """Make a ring for a backend and grant it, all in one packet."""
        backing = self._take_spare()
        ring = _Ring(GrantRef(self._refs.take()), GrantRef(self._refs.take()), Port(self._ports.take()))
        self._rings[offer.handle, offer.backend] = ring
        self._bells[ring.port] = (offer.handle, offer.backend)
        granted = [os.dup(backing.out_fd), os.dup(backing.in_fd)]
        backing.close_descriptors()
        self.loop.offer(offer.handle, offer.backend, backing)
        try:
            await self._domain.call_all(_grant_and_announce(offer, ring, granted))
        except Refused as refusal:
            self._domain.log.info("ring.refused", backend=str(offer.backend), handle=offer.handle, why=refusal.why)
        finally:
            for descriptor in granted:
                os.close(descriptor)

    def active(self, message: BackendActive) -> None:
        """Post to this backend from now on, first of all what is in flight."""
        self.loop.activate(message.handle, message.backend, message.take_published)

    def withdrawn(self, message: BackendWithdrawn) -> None:
        """Forget a backend that is gone. The hypervisor has freed what was granted to it, and its port."""
        ring = self._rings.pop((message.handle, message.backend), None)
        if ring is not None:
            del self._bells[ring.port]
            self._ports.give_back(ring.port)
            self._refs.give_back(ring.out_ref)
            self._refs.give_back(ring.in_ref)
        self.loop.withdraw(message.handle, message.backend)

    def connected(self, port: Port, descriptor: int) -> bool:
        """The backend has bound a doorbell: hand it to the loop. False for a port that is no doorbell of ours."""
        of = self._bells.get(port)
        if of is None:
            return False
        self.loop.attach_doorbell(*of, socket.socket(fileno=descriptor))
        return True

    def _take_spare(self) -> Backing:
        """A ring made in advance if there is one: zeroing its megabytes would be part of every outage."""
        backing, self._spare = self._spare or self._new_backing(), None
        self._nursery.start_soon(self._make_spare)
        return backing

    async def _make_spare(self) -> None:
        """Once it is quiet. One that is begun is finished."""
        self._waiting.cancel()
        with trio.CancelScope() as self._waiting:
            await trio.sleep(SPARE_AFTER_S)
            if self._spare is not None:
                return
            made = await trio.to_thread.run_sync(self._new_backing)
            if self._spare is None:
                self._spare = made
            else:
                made.release()

    def _loop_found_fault(self, handle: VbdHandle, peer: Peer | None, what: str, evidence: str) -> None:
        """Called on the loop's thread: hand it over to Trio's. Without a peer it is our guest that broke the rules."""
        if peer is None:
            self._token.run_sync_soon(self._on_guest_fault, f"{what}: {evidence}")
        else:
            self._token.run_sync_soon(self._nursery.start_soon, self._report, handle, peer, what, evidence)

    def _loop_found_stall(self, handle: VbdHandle, peer: Peer) -> None:
        """On the loop's thread too."""
        self._token.run_sync_soon(self._nursery.start_soon, self._tell_of_stall, handle, peer)

    async def _tell_of_stall(self, handle: VbdHandle, peer: Peer) -> None:
        with contextlib.suppress(Refused):  # it is gone, then
            await self._domain.call(XenbusStalled, handle=handle, backend=peer)

    async def _report(self, handle: VbdHandle, peer: Peer, what: str, evidence: str) -> None:
        self._domain.log.error("ring.faulted", handle=handle, backend=str(peer), what=what, evidence=evidence)
        try:
            await self._domain.call(XenbusFault, handle=handle, peer=peer, what=what[:512], evidence=evidence[:512])
        except Refused as refusal:
            self._domain.log.info("fault.refused", handle=handle, backend=str(peer), why=refusal.why)


def _grant_and_announce(offer: BackendOffered, ring: _Ring, granted: list[int]) -> list[Call]:
    out, into = granted
    return [
        Call(GnttabGrant, {"ref": ring.out_ref, "to": offer.backend, "access": Access.READ}, [out]),
        Call(GnttabGrant, {"ref": ring.in_ref, "to": offer.backend, "access": Access.READ_WRITE}, [into]),
        Call(EvtchnAllocUnbound, {"port": ring.port, "remote": offer.backend, "kind": ChannelKind.DOORBELL}),
        Call(
            XenbusConnect,
            {
                "handle": offer.handle,
                "backend": offer.backend,
                "out_ref": ring.out_ref,
                "in_ref": ring.in_ref,
                "port": ring.port,
            },
        ),
    ]
