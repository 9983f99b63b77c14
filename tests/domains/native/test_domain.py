"""What the hypervisor says, which the test plays, to a native guest: in its order, in a wrong one, and twice."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from domains.native import Domain
from domains.native.event_channels import OWN_PORTS
from domains.runtime import domain as runtime
from domains.runtime.channel import Channel
from drivers.blkback.ring import BackRing
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.guest_config import GuestConfig
from kernel.abi.hypercalls import DESCRIPTORS, ChannelKind, EvtchnResolve, GnttabGrant, Hypercall, XenbusConnect
from kernel.abi.ids import DomId, Generation, Peer, Port, VbdHandle
from kernel.abi.io.blkif import Op, RspStatus
from kernel.abi.log import open_log
from kernel.abi.roles import GuestVbd, NativeStart
from kernel.abi.status import Status
from kernel.abi.upcalls import BackendActive, BackendOffered, BackendWithdrawn, EvtchnConnected, PeerDied, Reply

SELF, HANDLE = Peer(DomId(4), Generation(1)), VbdHandle(7)
CONFIG = GuestConfig(name="n", type="native", program="/p", peers=["m"], memory=24)
_codec = Codec(Hypercall)


def driver(generation: int) -> Peer:
    return Peer(DomId(1), Generation(generation))


class Hypervisor:
    """Answers every call OK, keeps what was asked, and has the memory that was granted."""

    def __init__(self, control: int, guest: Domain) -> None:
        self.calls: list[Any] = []
        self.memory: dict[int, int] = {}
        self.found: Peer | None = None
        self._channel = Channel(control)
        self._guest = guest

    async def serve(self) -> None:
        while True:
            data, descriptors = await self._channel.receive()
            for call in _codec.decode(data):
                self.calls.append(call)
                for _ in range(DESCRIPTORS.get(type(call), 0)):
                    self.memory[call.ref] = descriptors.pop(0)
                value = self.found if isinstance(call, EvtchnResolve) else None
                await self._channel.send(encode([Reply(call.request, Status.OK, value)]))

    async def say(self, message: Any, *descriptors: int) -> None:
        """An upcall, taken whole."""
        left = list(descriptors)
        await self._guest.take(message, left)
        packet.close_all(left)

    def ring(self, backend: Peer) -> tuple[BackRing, int]:
        """The ring made for that incarnation, as it maps it, and the guest's end of its doorbell."""
        (made,) = [call for call in self.calls if isinstance(call, XenbusConnect) and call.backend == backend]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return BackRing(self.memory[made.out_ref], self.memory[made.in_ref], ours), theirs.detach()

    def port_of(self, backend: Peer) -> Port:
        (made,) = [call for call in self.calls if isinstance(call, XenbusConnect) and call.backend == backend]
        port: Port = made.port
        return port

    def close(self) -> None:
        self._channel.close()
        packet.close_all(list(self.memory.values()))


@asynccontextmanager
async def guest() -> AsyncIterator[tuple[Domain, Hypervisor, trio.Nursery]]:
    ours, theirs = packet.pair()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    domain = runtime.Domain("n", SELF, theirs.detach(), open_log(nowhere), b"", {})
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, runtime.open_domain(domain):
            native = Domain(domain, nursery, NativeStart(CONFIG, [GuestVbd(HANDLE, "vda", 64, False)]))
            hypervisor = Hypervisor(ours.detach(), native)
            nursery.start_soon(hypervisor.serve)
            yield native, hypervisor, nursery
            give_back(native)
            nursery.cancel_scope.cancel()
    domain.close()
    hypervisor.close()
    os.close(nowhere)


def give_back(native: Domain) -> None:
    """The rings, which a guest's process gives back with its end."""
    device, spare = native.disks["vda"]._device, native._xenbus._spare
    device._release_one()
    device.close()
    if spare is not None:
        spare.release()


async def answered(native: Domain) -> None:
    """Nothing is in flight."""
    while True:
        if not native.disks["vda"].stats().in_flight:
            return
        await trio.sleep(0.001)


async def served(hypervisor: Hypervisor, native: Domain, nursery: trio.Nursery, generation: int) -> None:
    """That incarnation answers a read, after whatever came before."""
    ring, doorbell = hypervisor.ring(driver(generation))
    connected = EvtchnConnected(hypervisor.port_of(driver(generation)), driver(generation), ChannelKind.DOORBELL)
    await hypervisor.say(connected, doorbell)
    nursery.start_soon(native.disks["vda"].read, 0, 512)
    await wait_all_tasks_blocked()
    requests = ring.take(8)
    assert [op for _, op, *_ in requests] == [Op.READ] * len(requests)
    assert requests
    ring.publish([ident | RspStatus.OK << 16 for ident, *_ in requests])
    ring.doorbell.ring()
    await answered(native)
    ring.close()


OFFERED, ACTIVE, GONE = BackendOffered, BackendActive, BackendWithdrawn
ORDERS: dict[str, list[Any]] = {
    "as it should be": [OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), False)],
    "active before it is offered": [
        ACTIVE(HANDLE, driver(1), False), OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), False),
    ],
    "active twice": [
        OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), False), ACTIVE(HANDLE, driver(1), True),
    ],
    "gone before it came": [
        GONE(HANDLE, driver(0)), OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), True),
    ],
    "gone twice": [
        OFFERED(HANDLE, driver(0)), ACTIVE(HANDLE, driver(0), True), GONE(HANDLE, driver(0)), GONE(HANDLE, driver(0)),
        OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), True),
    ],
    "gone without having served": [
        OFFERED(HANDLE, driver(0)), OFFERED(HANDLE, driver(1)), GONE(HANDLE, driver(0)),
        ACTIVE(HANDLE, driver(1), True),
    ],
    "active after it is gone": [
        OFFERED(HANDLE, driver(0)), GONE(HANDLE, driver(0)), ACTIVE(HANDLE, driver(0), True),
        OFFERED(HANDLE, driver(1)), ACTIVE(HANDLE, driver(1), True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS.values(), ids=list(ORDERS))
async def test_in_whatever_order_backends_come_and_go_the_last_one_serves(order):
    async with guest() as (native, hypervisor, nursery):
        nursery.start_soon(native.disks["vda"].read, 512, 512)
        for message in order:
            await hypervisor.say(message)
        await served(hypervisor, native, nursery, 1)


async def test_a_doorbell_may_come_before_its_backend_is_active():
    async with guest() as (native, hypervisor, nursery):
        await hypervisor.say(OFFERED(HANDLE, driver(1)))
        ring, doorbell = hypervisor.ring(driver(1))
        await hypervisor.say(EvtchnConnected(hypervisor.port_of(driver(1)), driver(1), ChannelKind.DOORBELL), doorbell)
        await hypervisor.say(ACTIVE(HANDLE, driver(1), False))
        nursery.start_soon(native.disks["vda"].flush)
        await wait_all_tasks_blocked()
        ((ident, op, *_),) = ring.take(8)
        assert op == Op.FLUSH
        ring.publish([ident | RspStatus.OK << 16])
        ring.doorbell.ring()
        await answered(native)
        ring.close()


@pytest.mark.parametrize("port", [1, OWN_PORTS, 0xFFFF])
async def test_a_channel_to_a_port_that_is_not_its_own_is_closed(port):
    async with guest() as (_, hypervisor, _nursery):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await hypervisor.say(EvtchnConnected(Port(port), driver(1), ChannelKind.MESSAGE), theirs.detach())
        assert ours.recv(1) == b""
        ours.close()


async def test_the_death_of_a_stranger_is_no_news():
    async with guest() as (native, hypervisor, nursery):
        await hypervisor.say(PeerDied(driver(9)))
        for message in ORDERS["as it should be"]:
            await hypervisor.say(message)
        await served(hypervisor, native, nursery, 1)


async def test_a_peer_is_waited_for_until_it_is_there():
    async with guest() as (native, hypervisor, _):
        assert await native.resolve("m") is None
        with trio.move_on_after(0.05) as patience:
            await native.wait_peer("m")
        assert patience.cancelled_caught
        hypervisor.found = Peer(DomId(9), Generation(3))
        assert await native.wait_peer("m") == hypervisor.found


async def test_a_ring_is_granted_for_reading_one_way_and_for_writing_the_other():
    async with guest() as (_, hypervisor, _nursery):
        await hypervisor.say(OFFERED(HANDLE, driver(1)))
        grants = [call for call in hypervisor.calls if isinstance(call, GnttabGrant)]
        assert [call.to for call in grants] == [driver(1)] * 2
        assert [call.access.name for call in grants] == ["READ", "READ_WRITE"]
