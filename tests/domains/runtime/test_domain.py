"""A domain's own end of its control channel."""

import os
import random
import select
import socket
import threading

import trio

from domains.runtime.channel import Channel
from domains.runtime.domain import Domain, open_domain
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.hypercalls import Hypercall, Version
from kernel.abi.ids import DomId, Generation, Peer, RequestId, VbdHandle
from kernel.abi.log import open_log
from kernel.abi.status import Status
from kernel.abi.upcalls import Reply, VbdDetached

NEWS = 3000
"""Of a thousand vbds."""

CALLS = 2000

_calls = Codec(Hypercall)


async def test_an_answer_reaches_a_role_that_waits_for_it_before_it_takes_all_that_came_first():
    ours, theirs = packet.pair()
    hypervisor = Channel(ours.detach())
    log = os.open("/dev/null", os.O_WRONLY)
    domain = Domain("d", Peer(DomId(1), Generation(1)), theirs.detach(), open_log(log), b"", {})

    async def tell_and_answer() -> None:
        for first in range(0, NEWS, 100):
            await hypervisor.send(encode([VbdDetached(VbdHandle(handle)) for handle in range(first, first + 100)]))
        await hypervisor.receive()
        await hypervisor.send(encode([Reply(RequestId(1), Status.OK, "answered")]))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, open_domain(domain):
            nursery.start_soon(tell_and_answer)
            await domain.upcalls.receive()
            assert (await domain.call(Version)).value == "answered"
            handles = [(await domain.upcalls.receive()).message.handle for _ in range(NEWS - 1)]
            assert handles == list(range(1, NEWS))
    domain.close()
    hypervisor.close()
    os.close(log)


async def test_news_keeps_its_order_and_no_answer_is_lost_however_calls_and_cancellations_fall_between():
    """Answers come within the moment in which they are looked for, after it, and when nobody waits any more."""
    ours, theirs = packet.pair()
    log = os.open("/dev/null", os.O_WRONLY)
    domain = Domain("d", Peer(DomId(1), Generation(1)), theirs.detach(), open_log(log), b"", {})
    peer = threading.Thread(target=_answer_with_news, args=(ours,))
    peer.start()
    chance = random.Random(5)
    heard: list[int] = []

    async def hear() -> None:
        for _ in range(CALLS):
            heard.append((await domain.upcalls.receive()).message.handle)

    with trio.fail_after(20):
        async with open_domain(domain), trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            for _ in range(CALLS):
                with trio.move_on_after(chance.choice([0.0001, 0.0003, 1])):
                    assert (await domain.call(Version)).value == "answered"
    assert heard == list(range(CALLS))
    domain.close()
    peer.join()
    ours.close()
    os.close(log)


def _answer_with_news(channel: socket.socket) -> None:
    """To each call: a piece of news, the answer, or both in one packet, at once or after a while."""
    chance = random.Random(7)
    number = 0
    while select.select([channel], [], []) and (data := packet.receive(channel).data):
        (call,) = _calls.decode(data)
        messages = [VbdDetached(VbdHandle(number)), Reply(call.request, Status.OK, "answered")]
        number += 1
        select.select([], [], [], chance.choice([0, 0, 0.0001, 0.0002, 0.001]))
        for part in chance.choice([[messages], [messages[:1], messages[1:]]]):
            packet.send(channel, encode(part))
