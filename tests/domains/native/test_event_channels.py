"""Ports of a native guest against a hypervisor that the test plays: each is freed once, whatever becomes of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from domains.native.event_channels import OWN_PORTS, EventChannels, PeerGone
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain, open_domain
from domains.runtime.numbers import Numbers
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.hypercalls import ChannelKind, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnClose, Hypercall
from kernel.abi.ids import DomId, Generation, Peer, Port
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import EvtchnConnected, Reply

PEER = Peer(DomId(5), Generation(1))
_codec = Codec(Hypercall)


class Hypervisor:
    """Answers every call OK, or as `refusals` say; keeps what was asked."""

    def __init__(self, control: int) -> None:
        self.calls: list[Any] = []
        self.refusals: list[Status] = []
        self.far_ends: list[Channel] = []
        self._channel = Channel(control)

    async def serve(self) -> None:
        while True:
            data, _ = await self._channel.receive()
            for call in _codec.decode(data):
                self.calls.append(call)
                await self._answer(call)

    async def _answer(self, call: Any) -> None:
        status = self.refusals.pop(0) if self.refusals else Status.OK
        if isinstance(call, EvtchnBindInterdomain) and status is Status.OK:
            ours, theirs = packet.pair()
            self.far_ends.append(Channel(ours.detach()))
            with theirs:
                await self._channel.send(encode([Reply(call.request, status, descriptors=1)]), [theirs.fileno()])
        else:
            await self._channel.send(encode([Reply(call.request, status, why=status.name)]))

    def closed(self) -> list[int]:
        return [call.port for call in self.calls if isinstance(call, EvtchnClose)]

    def close(self) -> None:
        self._channel.close()
        for end in self.far_ends:
            end.close()


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[EventChannels, Hypervisor]]:
    ours, theirs = packet.pair()
    hypervisor = Hypervisor(ours.detach())
    domain = Domain("n", Peer(DomId(4), Generation(1)), theirs.detach(), None, b"", {})
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, open_domain(domain):
            nursery.start_soon(hypervisor.serve)
            yield EventChannels(domain, Numbers(first=OWN_PORTS)), hypervisor
            nursery.cancel_scope.cancel()
    domain.close()
    hypervisor.close()


def connect(events: EventChannels, port: int, kind: ChannelKind = ChannelKind.MESSAGE) -> Channel:
    """The peer binds that port; its end."""
    ours, theirs = packet.pair()
    descriptors = [theirs.detach()]
    assert events.connected(EvtchnConnected(Port(port), PEER, kind), descriptors)
    assert descriptors == []
    return Channel(ours.detach())


async def test_a_port_is_chosen_where_the_program_does_not_and_freed_once():
    async with channels() as (events, hypervisor):
        channel = await events.bind_interdomain(PEER, 1)
        assert channel.port == OWN_PORTS
        async with channel:
            await hypervisor.far_ends[0].send(b"data")
            assert await channel.receive() == b"data"
        await channel.close()
        assert hypervisor.closed() == [OWN_PORTS]


async def test_a_port_of_the_programs_own_is_among_those_that_it_may_choose():
    async with channels() as (events, hypervisor):
        for port in (0, -1, OWN_PORTS, 1 << 20):
            with pytest.raises(ValueError, match="choose one of 1 to 32767"):
                await events.alloc_unbound(PEER, port)
        await events.alloc_unbound(PEER, OWN_PORTS - 1)
        assert [call.port for call in hypervisor.calls if isinstance(call, EvtchnAllocUnbound)] == [OWN_PORTS - 1]


async def test_both_ends_pass_packets_and_an_end_that_closes_is_noticed():
    async with channels() as (events, _):
        waiting = await events.alloc_unbound(PEER, 3)
        far = connect(events, 3)
        channel = await waiting.connected()
        await channel.send(b"x" * 65536)
        assert (await far.receive()).data == b"x" * 65536
        for data in (b"", b"x" * 65537):
            with pytest.raises(ValueError, match="a packet has 1 to 65536"):
                await channel.send(data)
        far.close()
        with pytest.raises(PeerGone, match=r"domain 5\.1 is gone"):
            await channel.receive()
        with pytest.raises(PeerGone):
            await channel.send(b"x")
        await channel.close()


async def test_descriptors_that_a_peer_sends_along_are_closed():
    async with channels() as (events, _):
        waiting = await events.alloc_unbound(PEER, 3)
        far = connect(events, 3)
        channel = await waiting.connected()
        ours, theirs = packet.pair()
        with ours:
            await far.send(b"take this", [theirs.fileno()])
            theirs.close()
            assert await channel.receive() == b"take this"
            assert packet.receive(ours).data == b"", "nobody holds the other end"
        far.close()
        await channel.close()


async def test_a_doorbell_is_rung_and_waited_for():
    async with channels() as (events, _):
        waiting = await events.alloc_doorbell(PEER, 3)
        far = connect(events, 3, ChannelKind.DOORBELL)
        bell = await waiting.connected()
        bell.ring()
        assert (await far.receive()).data
        await far.send(b"\1")
        await bell.wait()
        far.close()
        with pytest.raises(PeerGone):
            await bell.wait()
        bell.ring()
        await bell.close()


async def test_a_peer_that_dies_before_it_binds_is_not_waited_for():
    async with channels() as (events, hypervisor):
        waiting, other = await events.alloc_unbound(PEER), await events.alloc_unbound(Peer(DomId(6), Generation(1)))
        events.peer_died(PEER)
        with pytest.raises(PeerGone):
            await waiting.connected()
        await other.close()
        with pytest.raises(PeerGone):
            await other.connected()
        assert hypervisor.closed() == [other.port]


async def test_what_is_refused_leaves_no_port_behind():
    async with channels() as (events, hypervisor):
        for act in (events.alloc_unbound, events.alloc_doorbell):
            hypervisor.refusals = [Status.ENOSPC, Status.ENOENT]
            with pytest.raises(Refused, match="ENOSPC"):
                await act(PEER)
        hypervisor.refusals = [Status.EPERM, Status.ENOENT]
        with pytest.raises(Refused, match="EPERM"):
            await events.connect(PEER, 1)
        assert not events.connected(EvtchnConnected(Port(OWN_PORTS), PEER, ChannelKind.MESSAGE), [])


async def test_a_port_that_is_not_there_yet_is_asked_for_again():
    async with channels() as (events, hypervisor):
        hypervisor.refusals = [Status.ENOENT, Status.OK, Status.ENOENT, Status.OK]
        async with await events.connect(PEER, 1, 7) as channel:
            assert channel.port == 7
        assert sum(isinstance(call, EvtchnBindInterdomain) for call in hypervisor.calls) == 3
