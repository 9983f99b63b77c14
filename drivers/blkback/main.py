"""The block back end: images behind the vbds of any number of guests.

Trio takes upcalls; the rings are served by a loop of their own, in a thread beside it.
"""

import socket
import threading
from typing import Protocol

import msgspec
import trio

from domains.runtime.domain import Call, Domain, open_domain
from domains.runtime.faults import FaultPoints
from domains.runtime.numbers import Numbers
from domains.runtime.threads import share_one_arena
from domains.runtime.turn import wait_turn
from drivers.blkback.loop import Opener, ServeLoop
from kernel.abi.hypercalls import (
    Access,
    EvtchnBindInterdomain,
    GnttabMap,
    XenbusConnected,
    XenbusFault,
)
from kernel.abi.ids import DomId, Generation, GrantRef, Peer, Port, VbdHandle
from kernel.abi.packet import close_all
from kernel.abi.roles import DriverStart
from kernel.abi.status import Refused
from kernel.abi.upcalls import (
    ImageProbe,
    Misbehave,
    ShutdownRequested,
    VbdAttached,
    VbdBacking,
    VbdDetached,
    VbdImage,
    VbdRing,
)

__all__ = ["REHEARSAL", "Blkback", "Formatted", "main", "spare_address_space"]

STACK_BYTES = 512 << 10
"""Of a thread's. Each vbd that flushes has one, and a thousand of the usual 8 MiB are no address space to spare."""

_NOBODY = Peer(DomId(0), Generation(0))
REHEARSAL = (
    VbdAttached(VbdHandle(0), sectors=0, read_only=True),
    VbdRing(VbdHandle(0), _NOBODY, GrantRef(0), GrantRef(0), Port(0)),
)
"""What every incarnation hears first."""


async def main(domain: Domain) -> None:
    """Serve raw images until the hypervisor ends us."""
    spare_address_space()
    start = msgspec.msgpack.decode(domain.config, type=DriverStart)
    async with trio.open_nursery() as nursery:
        backend = Blkback(domain, nursery, faults_allowed=start.faults)
        await backend.run()
        nursery.cancel_scope.cancel()


def spare_address_space() -> None:
    """Have threads take little of it."""
    threading.stack_size(STACK_BYTES)
    share_one_arena()


class Formatted(Protocol):
    """Who knows images that are not raw."""

    def stands_on(self, handle: VbdHandle, backing: int) -> None:
        """What the vbd's next image stands on. The descriptor is given away."""

    def opener(self, vbd: VbdAttached, image: int) -> Opener:
        """How the loop opens the vbd's image. The descriptor is given away."""

    async def probe(self, number: int, image: int) -> None:
        """Look into an image, and tell the hypervisor. The descriptor is given away."""


class Blkback:
    """What the hypervisor says, handed to the loop; what the loop finds, told to the hypervisor."""

    def __init__(
        self, domain: Domain, nursery: trio.Nursery, *, faults_allowed: bool, formatted: Formatted | None = None
    ) -> None:
        self._domain = domain
        self._nursery = nursery
        self._faults_allowed = faults_allowed
        self._formatted = formatted
        self._points = FaultPoints()
        self._attached: dict[VbdHandle, VbdAttached] = {}
        self._frontends: dict[VbdHandle, Peer] = {}
        self._numbers = Numbers()
        self._ports: dict[VbdHandle, int] = {}
        self._token = trio.lowlevel.current_trio_token()
        self.loop = ServeLoop(on_fault=self._loop_found_fault, faults=self._points)

    async def run(self) -> None:
        """Serve until the hypervisor asks for the end, or is gone."""
        self.loop.start()
        try:
            async with open_domain(self._domain, self.beat):
                await self._domain.started()
                async for message, descriptors in self._domain.upcalls:
                    try:
                        await self.take(message, descriptors)
                    finally:
                        close_all(descriptors)
                    if isinstance(message, ShutdownRequested):
                        return
        finally:
            self.loop.stop()

    async def beat(self) -> None:
        """Return once the loop has turned."""
        await wait_turn(self.loop.submit)

    async def take(self, message: object, descriptors: list[int]) -> None:
        """Act on one upcall. Descriptors that it keeps are taken out of the list."""
        match message:
            case VbdAttached(handle=handle):
                self._attached[handle] = message
            case VbdRing():
                await self._connect(message)
            case VbdImage(handle=handle) if self._formatted is None:
                self.loop.activate(handle, descriptors.pop(0))
            case VbdImage(handle=handle) if self._formatted is not None:
                self.loop.activate(handle, self._formatted.opener(self._attached[handle], descriptors.pop(0)))
            case VbdBacking(handle=handle) if self._formatted is not None:
                self._formatted.stands_on(handle, descriptors.pop(0))
            case ImageProbe(probe=number) if self._formatted is not None:
                self._nursery.start_soon(self._formatted.probe, number, descriptors.pop(0))
            case VbdDetached(handle=handle):
                self._detach(handle)
            case Misbehave(what=what, count=count) if self._faults_allowed:
                self._misbehave(what, count)

    async def _connect(self, ring: VbdRing) -> None:
        """Map a frontend's ring, bind its doorbell, and say so. One that had a ring is another process now: the
        hypervisor has freed the port of the earlier ring."""
        vbd = self._attached.get(ring.handle)
        if vbd is None:
            return
        self._points.hit("connect")
        self._numbers.give_back(self._ports.pop(ring.handle, 0))
        port = self._numbers.take()
        calls = [
            Call(GnttabMap, {"owner": ring.frontend, "ref": ring.out_ref, "access": Access.READ}),
            Call(GnttabMap, {"owner": ring.frontend, "ref": ring.in_ref, "access": Access.READ_WRITE}),
            Call(EvtchnBindInterdomain, {"port": port, "remote": ring.frontend, "remote_port": ring.port}),
        ]
        try:
            out, into, doorbell = await self._domain.call_all(calls)
        except Refused as refusal:
            self._domain.log.warning("ring.refused", handle=ring.handle, frontend=str(ring.frontend), why=refusal.why)
            return
        assert out.descriptor is not None
        assert into.descriptor is not None
        assert doorbell.descriptor is not None
        self._frontends[ring.handle], self._ports[ring.handle] = ring.frontend, port
        bell = socket.socket(fileno=doorbell.descriptor)
        self.loop.connect(ring.handle, vbd.sectors, vbd.read_only, out.descriptor, into.descriptor, bell)
        self._nursery.start_soon(self._say_connected, ring)

    async def _say_connected(self, ring: VbdRing) -> None:
        try:
            await self._domain.call(XenbusConnected, handle=ring.handle, frontend=ring.frontend)
        except Refused as refusal:
            self._domain.log.warning("ring.refused", handle=ring.handle, frontend=str(ring.frontend), why=refusal.why)

    def _detach(self, handle: VbdHandle) -> None:
        """The guest is gone; the hypervisor has freed our port with it."""
        self.loop.disconnect(handle)
        self._attached.pop(handle, None)
        self._frontends.pop(handle, None)
        self._numbers.give_back(self._ports.pop(handle, 0))

    def _misbehave(self, what: str, count: int) -> None:
        self._domain.log.warning("fault.armed", what=what, count=count)
        act, _, point = what.partition("@")
        if act == "crash" and point:
            self._points.arm(point, count)
        else:
            self.loop.misbehave(what)

    def _loop_found_fault(self, handle: VbdHandle, what: str, evidence: str) -> None:
        """Called on the loop's thread: hand it over to Trio's."""
        self._token.run_sync_soon(self._nursery.start_soon, self._report, handle, what, evidence)

    async def _report(self, handle: VbdHandle, what: str, evidence: str) -> None:
        frontend = self._frontends.get(handle)
        self._domain.log.error("ring.faulted", handle=handle, frontend=str(frontend), what=what, evidence=evidence)
        if frontend is None:
            return
        try:
            await self._domain.call(XenbusFault, handle=handle, peer=frontend, what=what[:512], evidence=evidence[:512])
        except Refused as refusal:
            self._domain.log.warning("fault.refused", handle=handle, why=refusal.why)
