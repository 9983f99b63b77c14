"""The ends of consoles and of the hypervisor's log, from the log keeper."""

import msgspec
import trio

from domains.runtime.channel import Channel
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.keeping import TAIL_BYTES, Tail, TailEnd, TailPart
from kernel.abi.status import DomainFault, Refused, Status

__all__ = ["Tails"]

KEEPER_S = 5.0
"""The keeper answers from memory; a second one may have to be started first."""

_MEND = "read the files in the run folder"

_codec = Codec(TailPart | TailEnd)


class Tails:
    """The channel to the log keeper. Its answers carry no number, so one question is asked at a time."""

    def __init__(self, keeper: Channel) -> None:
        self._keeper = keeper
        self._asking = trio.Lock()

    async def tail(self, name: str | None) -> bytes:
        """The last `TAIL_BYTES` of a guest's console, or of the hypervisor's log.

        Refuses ENOENT where none was kept, EIO when the keeper does not answer.
        """
        async with self._asking:
            # Shielded: half an answer left behind would be taken for the next one's.
            with trio.move_on_after(KEEPER_S, shield=True):
                try:
                    self._forget_late_answers()
                    await self._keeper.send(encode([Tail(name)]))
                    return await self._answer(name)
                except (OSError, DomainFault, msgspec.DecodeError) as error:
                    raise Refused(Status.EIO, f"the log keeper failed ({error}): {_MEND}") from error
        raise Refused(Status.EIO, f"the log keeper said nothing for {KEEPER_S:g} s: {_MEND}")

    def _forget_late_answers(self) -> None:
        while True:
            try:
                data, descriptors = packet.receive(self._keeper.socket)
            except BlockingIOError:
                return
            packet.close_all(descriptors)
            if not data:
                return

    async def _answer(self, name: str | None) -> bytes:
        tail = bytearray()
        while True:
            data, descriptors = await self._keeper.receive()
            packet.close_all(descriptors)
            if not data:
                raise DomainFault(None, "its channel ended")
            for message in _codec.decode(data):
                match message:
                    case TailPart(data=piece) if len(tail) + len(piece) <= TAIL_BYTES:
                        tail += piece
                    case TailEnd(known=True):
                        return bytes(tail)
                    case TailEnd():
                        raise Refused(Status.ENOENT, f"no console was kept for {name!r}: tv list shows the guests")
                    case _:
                        raise DomainFault(None, "it broke its protocol")
