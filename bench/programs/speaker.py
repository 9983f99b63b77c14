"""Two native guests that time their ways of speaking: with the hypervisor, and with each other.

`args`: `echo` or `measure`, the other's name, how many rounds. The one that measures prints a line of JSON: the times
of its rounds in µs, and the rate of messages one way, coalesced.
"""

import json
import time
from collections.abc import Awaitable, Callable

import msgspec
import trio
from msgspec import Struct

from domains.native import Domain, MessageChannel, PeerGone

PORT = 1
BATCH = 512
"""Messages in a packet: some 7 KiB of 64."""

RATE_S = 0.5

SETTLE_S = 0.5
"""Until whoever started both has put everybody where it wants them."""


class Moved(Struct, tag=1, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A message as devices have them."""

    handle: int
    sector: int
    count: int


_decode = msgspec.msgpack.Decoder(list[Moved]).decode
_encode = msgspec.msgpack.Encoder().encode


async def main(domain: Domain) -> None:
    """Echo or measure."""
    role, name, rounds = domain.args
    peer = await domain.wait_peer(name)
    if role == "echo":
        async with await (await domain.event_channels.alloc_unbound(peer, PORT)).connected() as channel:
            await echo(channel)
        return
    async with await domain.event_channels.connect(peer, PORT) as channel:
        await trio.sleep(SETTLE_S)
        hypercalls = await time_each(int(rounds), domain.version)
        messages = await time_each(int(rounds), lambda: round_trip(channel))
        print(json.dumps({"hypercall_us": hypercalls, "message_us": messages, "rate": await rate(channel)}))
        await trio.sleep_forever()


async def time_each(rounds: int, act: Callable[[], Awaitable[object]]) -> list[float]:
    """The time of each round, in µs."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await act()
        times.append(1e6 * (time.perf_counter() - began))
    return times


async def round_trip(channel: MessageChannel) -> None:
    """One packet there and back."""
    await channel.send(b"ping")
    await channel.receive()


async def rate(channel: MessageChannel) -> float:
    """Messages a second that the other has decoded and checked, from the first packet to its word that it has all."""
    packets = 0
    began = time.perf_counter()
    while time.perf_counter() < began + RATE_S:
        first = packets * BATCH
        await channel.send(_encode([Moved(1, first + number, 8) for number in range(BATCH)]))
        packets += 1
    await channel.send(b"all")
    counted = int(await channel.receive())
    took = time.perf_counter() - began
    if counted != packets * BATCH:
        raise SystemExit(f"{packets * BATCH} messages were sent, {counted} came")
    return counted / took


async def echo(channel: MessageChannel) -> None:
    """Give pings back; count messages, each in its order, until told that these were all."""
    counted = 0
    try:
        while True:
            data = await channel.receive()
            if data == b"ping":
                await channel.send(data)
            elif data == b"all":
                await channel.send(str(counted).encode())
            else:
                for message in _decode(data):
                    if message.sector != counted:
                        raise SystemExit(f"message {message.sector} came in the place of {counted}")
                    counted += 1
    except PeerGone:
        return
