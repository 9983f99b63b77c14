"""What a domain's own code stands on: who it is, its hypercalls, its upcalls, its log."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import trio
from msgspec import Struct

from domains.runtime.channel import Channel
from kernel.abi import packet, upcalls
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.hypercalls import Pong, Started
from kernel.abi.ids import Peer, RequestId
from kernel.abi.log import Log
from kernel.abi.status import KernelBug, Refused, Status
from kernel.abi.upcalls import Ping, Reply, ReplyPart, SoftReset, Upcall

__all__ = ["Answer", "Call", "Domain", "UpcallWithDescriptors", "open_domain"]

UPCALL_BOUND = 4096
"""Upcalls waiting for the role's code, as many as the hypervisor keeps packets for a peer: the news of a thousand vbds.
While there is no room the answers behind are not read either, and a role may be waiting for one of them."""

LIFE_SHIFT = 20
"""A process begins its hypercalls' numbers at its place among those of its incarnation, so far to the left: a late
reply to the one before is not taken for its own."""

_codec = Codec(Upcall)


class Call(NamedTuple):
    """A hypercall to be made: its type, its fields without `request`, the descriptors that ride along."""

    operation: type[Struct]
    fields: dict[str, Any]
    descriptors: Sequence[int] = ()


class Answer(NamedTuple):
    """How a hypercall ended. The caller owns the descriptor."""

    status: Status
    value: Any
    why: str
    descriptor: int | None


class UpcallWithDescriptors(NamedTuple):
    """An upcall for the role's own code, which owns the descriptors."""

    message: Any
    descriptors: list[int]


class Domain:
    """This incarnation. Made by `open_domain`; lives as long as its `async with`."""

    def __init__(
        self, name: str, peer: Peer, control: int, log: Log, config: bytes, descriptors: dict[str, int], life: int = 0
    ) -> None:
        """`life`: how many processes were this incarnation before. What is still on its way to them is not for us."""
        self.name = name
        self.peer = peer
        self.log = log
        self.config = config
        self.descriptors = descriptors
        self._control = Channel(control)
        self._pending: dict[RequestId, trio.MemorySendChannel[Answer]] = {}
        self._parts: dict[RequestId, list[bytes]] = {}
        self.life = life
        self._last_request = life << LIFE_SHIFT & 0xFFFF_FFFF
        self._for_us = life == 0
        self._to_role, self.upcalls = trio.open_memory_channel[UpcallWithDescriptors](UPCALL_BOUND)

    def close(self) -> None:
        """Give up the control channel. A domain's process ends without it: this is for one that goes on."""
        self._control.close()

    async def started(self) -> None:
        """Tell the hypervisor that the role's code runs and takes upcalls."""
        await self.say(Started())

    async def say(self, message: Struct) -> None:
        """Tell the hypervisor something that needs no answer."""
        await self._control.send(encode([message]))

    async def call(self, operation: type[Struct], descriptors: Sequence[int] = (), **fields: Any) -> Answer:
        """Make one hypercall. Raises Refused when the status is not OK."""
        (answer,) = await self.call_all([Call(operation, fields, descriptors)])
        return answer

    async def call_all(self, calls: Sequence[Call]) -> list[Answer]:
        """Make several hypercalls in one packet. Raises Refused for the first that is not OK, after all are
        answered."""
        numbered = [(self._next_request(), call) for call in calls]
        waiting = []
        for request, _ in numbered:
            into, out_of = trio.open_memory_channel[Answer](1)
            self._pending[request] = into
            waiting.append(out_of)
        messages = [call.operation(request=request, **call.fields) for request, call in numbered]
        try:
            await self._control.send(encode(messages), [d for _, call in numbered for d in call.descriptors])
            answers = [await channel.receive() for channel in waiting]
        finally:
            for request, _ in numbered:
                self._pending.pop(request, None)
                self._parts.pop(request, None)
        _raise_first_refusal(answers)
        return answers

    def _next_request(self) -> RequestId:
        self._last_request = (self._last_request + 1) & 0xFFFF_FFFF
        return RequestId(self._last_request)

    async def run(self, beat: Callable[[], Awaitable[None]]) -> None:
        """Take packets until the control channel ends; answer a `Ping` once `beat` has returned."""
        async with trio.open_nursery() as nursery:
            while True:
                data, descriptors = await self._control.receive()
                if not data:
                    nursery.cancel_scope.cancel()
                    return
                for message in _codec.decode(data):
                    match message:
                        case Ping(sequence=sequence):
                            nursery.start_soon(self._answer_ping, beat, sequence)
                        case ReplyPart(request=request, data=part) if request in self._pending:
                            self._parts.setdefault(request, []).append(part)
                        case ReplyPart():
                            pass  # nobody waits for it any more
                        case Reply():
                            self._answered(message, descriptors)
                        case SoftReset():
                            self._for_us = True
                        case Undecodable():
                            raise KernelBug(f"the hypervisor sent {message}")
                        case _:
                            count = upcalls.DESCRIPTORS.get(type(message), 0)
                            taken, descriptors = descriptors[:count], descriptors[count:]
                            if self._for_us:
                                await self._to_role.send(UpcallWithDescriptors(message, taken))
                            else:
                                packet.close_all(taken)
                packet.close_all(descriptors)

    async def _answer_ping(self, beat: Callable[[], Awaitable[None]], sequence: int) -> None:
        await beat()
        await self.say(Pong(sequence))

    def _answered(self, reply: Reply, descriptors: list[int]) -> None:
        descriptor = descriptors.pop(0) if reply.descriptors else None
        pending = self._pending.pop(reply.request, None)
        if pending is None:
            if descriptor is not None:
                os.close(descriptor)
            return
        parts = self._parts.pop(reply.request, None)
        value = msgspec.msgpack.decode(b"".join(parts)) if parts else reply.value
        pending.send_nowait(Answer(reply.status, value, reply.why, descriptor))


def _raise_first_refusal(answers: list[Answer]) -> None:
    refused = next((answer for answer in answers if answer.status is not Status.OK), None)
    if refused is None:
        return
    for answer in answers:
        if answer.descriptor is not None:
            os.close(answer.descriptor)
    raise Refused(refused.status, refused.why)


async def _turned() -> None:
    """The beat of a domain with no loop but Trio's: that we run is the proof."""


@asynccontextmanager
async def open_domain(domain: Domain, beat: Callable[[], Awaitable[None]] = _turned) -> AsyncIterator[Domain]:
    """Serve the control channel while the body runs. When the channel ends, the body is cancelled: nobody is left to
    serve.

    `beat` returns once every loop of the domain's own has turned; a `Ping` is answered after it.
    """
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await domain.run(beat)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        yield domain
        nursery.cancel_scope.cancel()
