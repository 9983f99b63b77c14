"""Two native guests that speak with each other: packets over a message channel, then a shared page with doorbells.

`args` are whether to serve (`pong`) or to measure (`ping`), the other's name, which must be among `peers`, and how many
rounds. It does not matter which is started first.
"""

import statistics
import time
from collections.abc import Awaitable, Callable

import trio

from domains.native import Access, Domain, Doorbell, MessageChannel, Peer, PeerGone

MESSAGES, BELL = 1, 2
"""Ports of the one that serves."""

PAGE_BYTES = 4096
WORD_BYTES = 8
PING_AT, PONG_AT = 0, 64
"""Where in the shared page each side writes its word."""

PATIENCE_S = 60.0
"""For the other to be there."""


async def main(domain: Domain) -> None:
    """Serve or measure."""
    role, name, rounds = domain.args
    with trio.fail_after(PATIENCE_S):
        peer = await domain.wait_peer(name)
    if role == "pong":
        await pong(domain, peer)
        return
    with trio.fail_after(PATIENCE_S):
        channel = await domain.event_channels.connect(peer, MESSAGES)
    async with channel:
        await ping(domain, channel, int(rounds))


async def pong(domain: Domain, peer: Peer) -> None:
    """Give back every packet, and write every word that the other writes; until it is gone."""
    page = await domain.grants.grant(peer, PAGE_BYTES, Access.READ_WRITE)
    waiting_bell = await domain.event_channels.alloc_doorbell(peer, BELL)
    waiting = await domain.event_channels.alloc_unbound(peer, MESSAGES)
    print(f"serves domain {peer}")
    try:
        async with await waiting.connected() as channel:
            await channel.send(page.ref.to_bytes(4, "little"))
            while (data := await channel.receive()) != b"bell":
                await channel.send(data)
            async with await waiting_bell.connected() as bell:
                await channel.send(b"bell")
                while True:
                    await bell.wait()
                    page.view[PONG_AT : PONG_AT + WORD_BYTES] = page.view[PING_AT : PING_AT + WORD_BYTES]
                    bell.ring()
    except PeerGone:
        print(f"domain {peer} is gone")


async def ping(domain: Domain, channel: MessageChannel, rounds: int) -> None:
    """Measure both ways of speaking."""
    ref = int.from_bytes(await channel.receive(), "little")

    async def packet(number: int) -> None:
        data = number.to_bytes(WORD_BYTES, "little")
        await channel.send(data)
        if await channel.receive() != data:
            raise SystemExit(f"round {number}: another packet came back")

    print(f"{'':16} {'rounds':>8} {'median µs':>10} {'p95 µs':>8}")
    print(await measure("message channel", rounds, packet))
    page = await domain.grants.map(channel.peer, ref, PAGE_BYTES, Access.READ_WRITE)
    await channel.send(b"bell")
    async with await domain.event_channels.bind_doorbell(channel.peer, BELL) as bell:
        await channel.receive()
        print(await measure("shared page", rounds, lambda number: ring(page.view, bell, number)))
    page.unmap()


async def ring(page: memoryview, bell: Doorbell, number: int) -> None:
    """Write a word, and wait until the other has written it too."""
    word = number.to_bytes(WORD_BYTES, "little")
    page[PING_AT : PING_AT + WORD_BYTES] = word
    bell.ring()
    while page[PONG_AT : PONG_AT + WORD_BYTES] != word:
        await bell.wait()


async def measure(what: str, rounds: int, act: Callable[[int], Awaitable[None]]) -> str:
    """One row."""
    times = []
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        await act(number)
        times.append(1e6 * (time.perf_counter() - began))
    p95 = sorted(times)[int(0.95 * len(times))]
    return f"{what:16} {rounds:8,} {statistics.median(times):10,.1f} {p95:8,.1f}"
