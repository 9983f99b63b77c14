"""A domain's own end of its control channel."""

import os

import trio

from domains.runtime.channel import Channel
from domains.runtime.domain import Domain, open_domain
from kernel.abi import packet
from kernel.abi.codec import encode
from kernel.abi.hypercalls import Version
from kernel.abi.ids import DomId, Generation, Peer, RequestId, VbdHandle
from kernel.abi.log import open_log
from kernel.abi.status import Status
from kernel.abi.upcalls import Reply, VbdDetached

NEWS = 3000
"""Of a thousand vbds."""


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
