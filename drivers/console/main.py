"""The console driver: each guest's console for any number of administrators, one of whom types.

It keeps nothing that its successor needs: what the guest wrote and which keys were taken is in the guest's ring, who
watches comes back by himself.
"""

import contextlib
import os
import socket
import time

import msgspec
import trio

from domains.runtime.channel import Channel
from domains.runtime.domain import Call, Domain, open_domain
from domains.runtime.faults import FaultPoints
from domains.runtime.numbers import Numbers
from drivers.console.ring import BackRing, FrontendBroken
from drivers.console.serving import Served
from kernel.abi.codec import Codec, encode
from kernel.abi.console_io import CONSOLE_PORT, ConsoleAttach, ConsoleEnded
from kernel.abi.hypercalls import (
    Access,
    ChannelKind,
    ConsoleFault,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    GnttabMap,
)
from kernel.abi.ids import ANY_GENERATION, DOM0, Peer
from kernel.abi.io.ring import Unsealed
from kernel.abi.packet import close_all
from kernel.abi.roles import DriverStart
from kernel.abi.status import DomainFault, Refused
from kernel.abi.upcalls import ConsoleRing, EvtchnConnected, Misbehave, PeerDied, PeerReset, ShutdownRequested

__all__ = ["main"]

MAX_WATCHERS = 256
"""At once, of all guests. Each has a descriptor and two tasks."""

RING_S = 5.0
"""For a guest to give a fresh incarnation its ring."""

_codec = Codec(ConsoleAttach)


async def main(domain: Domain) -> None:
    """Serve until the hypervisor ends us."""
    start = msgspec.msgpack.decode(domain.config, type=DriverStart)
    async with trio.open_nursery() as nursery:
        driver = ConsoleDriver(domain, nursery, faults_allowed=start.faults)
        async with open_domain(domain):
            await driver.run()
        nursery.cancel_scope.cancel()


class ConsoleDriver:
    """All guests' consoles."""

    def __init__(self, domain: Domain, nursery: trio.Nursery, *, faults_allowed: bool) -> None:
        self._domain = domain
        self._nursery = nursery
        self._faults_allowed = faults_allowed
        self._faults = FaultPoints()
        self._ports = Numbers(first=CONSOLE_PORT + 1)
        self._served: dict[Peer, Served] = {}
        self._came = trio.Event()
        self._watchers = 0

    async def run(self) -> None:
        """Take upcalls until the hypervisor asks for the end."""
        await self._open_port()
        await self._domain.started()
        async for message, descriptors in self._domain.upcalls:
            try:
                await self._take(message, descriptors)
            finally:
                close_all(descriptors)
            if isinstance(message, ShutdownRequested):
                return

    async def _open_port(self) -> None:
        """Let Dom0, whichever incarnation it has, hand administrators over."""
        remote = Peer(DOM0, ANY_GENERATION)
        await self._domain.call(EvtchnAllocUnbound, port=CONSOLE_PORT, remote=remote, kind=ChannelKind.MESSAGE)

    async def _take(self, message: object, descriptors: list[int]) -> None:
        match message:
            case ConsoleRing():
                await self._connect(message)
            case EvtchnConnected(port=port) if port == CONSOLE_PORT:
                self._nursery.start_soon(self._take_orders, Channel(descriptors.pop(0)))
            case PeerDied(peer=peer) if peer.domid == DOM0:
                await self._open_port()
            case PeerDied(peer=peer) if peer in self._served:
                served = self._served[peer]
                served.end(f"guest {served.name} has ended")
                if served.lost:
                    del self._served[peer]
            case PeerReset(peer=peer) if peer in self._served:
                self._served[peer].lose()
            case Misbehave(what=what, count=count) if self._faults_allowed:
                self._misbehave(what, count)

    async def _connect(self, ring: ConsoleRing) -> None:
        """Map a guest's ring and bind its doorbell."""
        port = self._ports.take()
        calls = [
            Call(GnttabMap, {"owner": ring.frontend, "ref": ring.out_ref, "access": Access.READ}),
            Call(GnttabMap, {"owner": ring.frontend, "ref": ring.in_ref, "access": Access.READ_WRITE}),
            Call(EvtchnBindInterdomain, {"port": port, "remote": ring.frontend, "remote_port": ring.port}),
        ]
        try:
            answers = await self._domain.call_all(calls)
        except Refused as refusal:
            self._ports.give_back(port)
            self._domain.log.warning("ring.refused", frontend=str(ring.frontend), why=refusal.why)
            return
        out, into, bell = (answer.descriptor for answer in answers)
        assert out is not None
        assert into is not None
        assert bell is not None
        doorbell = socket.socket(fileno=bell)
        try:
            back = BackRing(out, into, doorbell)
        except (Unsealed, FrontendBroken) as error:
            doorbell.close()
            self._broke(ring.frontend, FrontendBroken("not the memory of a console ring", str(error)))
            return
        finally:
            close_all([out, into])
        earlier = self._served.get(ring.frontend)
        served = Served(ring.name, back, lambda broken: self._broke(ring.frontend, broken), earlier)
        self._served[ring.frontend] = served
        self._came.set()
        self._came = trio.Event()
        self._domain.log.info("console.connected", guest=ring.name, frontend=str(ring.frontend))
        self._nursery.start_soon(self._serve, ring.frontend, served, port)

    async def _serve(self, frontend: Peer, served: Served, port: int) -> None:
        """Until its last watcher has left. What was lost stays known, for the ring that follows it."""
        await served.run()
        while served.desk.watchers:
            await served.news.wait()
        if self._served.get(frontend) is served and not served.lost:
            del self._served[frontend]
        served.ring.close()
        self._ports.give_back(port)

    def _broke(self, frontend: Peer, broken: FrontendBroken) -> None:
        self._domain.log.error("ring.faulted", frontend=str(frontend), what=broken.what, evidence=broken.evidence)
        self._nursery.start_soon(self._report, frontend, broken)

    async def _report(self, frontend: Peer, broken: FrontendBroken) -> None:
        try:
            await self._domain.call(ConsoleFault, peer=frontend, what=broken.what, evidence=broken.evidence[:512])
        except Refused as refusal:
            self._domain.log.info("fault.refused", frontend=str(frontend), why=refusal.why)

    async def _take_orders(self, channel: Channel) -> None:
        """Until Dom0 is gone, or sends what is no order."""
        try:
            while True:
                data, descriptors = await channel.receive()
                if not data:
                    return
                messages = _codec.decode(data)
                if len(messages) != len(descriptors) or not all(isinstance(m, ConsoleAttach) for m in messages):
                    close_all(descriptors)
                    raise DomainFault(None, "not one connection for each order")
                for message, descriptor in zip(messages, descriptors, strict=True):
                    self._nursery.start_soon(self._attach, message, Channel(descriptor))
        except (OSError, DomainFault, msgspec.DecodeError) as error:
            self._domain.log.warning("orders.unreadable", error=repr(error))
        finally:
            channel.close()

    async def _attach(self, attach: ConsoleAttach, channel: Channel) -> None:
        """One administrator, from Dom0's word to his leaving."""
        self._watchers += 1
        self._faults.hit("attach")
        try:
            served = await self._find(attach.guest)
            if isinstance(served, str):
                with trio.move_on_after(RING_S), contextlib.suppress(OSError):
                    await channel.send(encode([ConsoleEnded(served)]))
            else:
                await served.watch(channel, attach, self._faults)
        finally:
            self._watchers -= 1
            channel.close()

    async def _find(self, guest: Peer) -> Served | str:
        """A guest's console, or why there is none. After a restart its ring may still be on the way."""
        if self._watchers > MAX_WATCHERS:
            return f"{MAX_WATCHERS} administrators watch consoles: try again when one has left"
        with trio.move_on_after(RING_S):
            while guest not in self._served or self._served[guest].lost:
                await self._came.wait()
            return self._served[guest]
        return "the guest has given the console driver no ring: tv dmesg shows what it wrote"

    def _misbehave(self, what: str, count: int) -> None:
        self._domain.log.warning("fault.armed", what=what, count=count)
        act, _, point = what.partition("@")
        if act == "crash" and point:
            self._faults.arm(point, count)
        elif act == "hang":
            while True:
                time.sleep(3600)
        elif act == "exit":
            os._exit(1)
