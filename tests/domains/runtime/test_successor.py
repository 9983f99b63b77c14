"""A process that goes on in place of another of its incarnation hears nothing that was meant for the one before."""

import os

import pytest
import trio

from domains.runtime.domain import Domain, open_domain
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.hypercalls import ChannelKind, Hypercall, Version
from kernel.abi.ids import DOM0, DomId, Generation, Peer, Port, RequestId
from kernel.abi.log import open_log
from kernel.abi.status import Status
from kernel.abi.upcalls import EvtchnConnected, PeerDied, Reply, SoftReset

PEER = Peer(DOM0, Generation(1))
EARLIER, CONNECTED = (EvtchnConnected(Port(port), PEER, ChannelKind.MESSAGE) for port in (1, 2))


@pytest.fixture
def ends():
    """A domain of the third process of its incarnation, and the hypervisor's end of its channel."""
    ours, theirs = packet.pair()
    with open(os.devnull, "wb") as nowhere:
        log = open_log(nowhere.fileno())
        yield Domain("g", Peer(DomId(2), Generation(1)), ours.detach(), log, b"", {}, life=2), theirs
    theirs.close()


async def test_what_was_on_its_way_to_the_process_before_is_dropped_with_its_descriptors(ends):
    domain, hypervisor = ends
    before = len(os.listdir("/proc/self/fd"))
    for messages in ([EARLIER, PeerDied(PEER)], [EARLIER, SoftReset(), CONNECTED]):
        connected = sum(isinstance(message, EvtchnConnected) for message in messages)
        packet.send(hypervisor, encode(messages), [hypervisor.fileno()] * connected)
    async with open_domain(domain):
        message, descriptors = await domain.upcalls.receive()
        assert (message, len(descriptors)) == (CONNECTED, 1)
        packet.close_all(descriptors)
    assert len(os.listdir("/proc/self/fd")) == before
    domain.close()


async def test_a_late_reply_to_the_process_before_is_not_taken_for_ones_own(ends):
    domain, hypervisor = ends
    late = Reply(RequestId(1), Status.OK, "late", descriptors=1)
    packet.send(hypervisor, encode([late]), [hypervisor.fileno()])
    before = len(os.listdir("/proc/self/fd"))
    async with open_domain(domain):

        async def answer() -> None:
            await trio.lowlevel.wait_readable(hypervisor)
            (call,) = Codec(Hypercall).decode(packet.receive(hypervisor).data)
            packet.send(hypervisor, encode([Reply(call.request, Status.OK, "ours")]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert (await domain.call(Version)).value == "ours"
    assert len(os.listdir("/proc/self/fd")) == before
    domain.close()
