"""A guest's vhost-user connection, kept by a process that does not die with the one that serves the device.

The keeper reads whole messages and hands each on over a SEQPACKET line; whoever serves the device answers with what the
session has come to and the bytes of the reply. Only then does the message count as handled and the front end get its
reply. So a death of the server at any instant leaves a message wholly unhandled, and its successor gets it again, or
wholly done. Front end and keeper go in step: one message at a time. Keeper and server are of one trust domain.
"""

import os
import socket

import msgspec
from msgspec import Struct

from domains.virtio.front_socket import FrontSocket
from domains.virtio.vhost_user import WITH_DESCRIPTORS, Message, ProtocolError
from kernel.abi import packet

__all__ = ["Custody", "FromKeeper", "FrontGone", "FrontMessage", "Handled", "Resumed", "encode_handled", "receive"]


class FrontMessage(Struct, tag=1, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → server: one message of the front end's, with its descriptors. Answer `Handled`."""

    code: int
    flags: int
    payload: bytes


class FrontGone(Struct, tag=2, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → server: the connection has ended, with all that came over it. `broke`: what rule the front end broke."""

    broke: str = ""
    evidence: str = ""


class Resumed(Struct, tag=3, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → server, first of all: go on from `state`, which your predecessor came to. For each of `codes` the
    descriptor rides along that came last with such a message."""

    state: bytes
    codes: list[int]


class Handled(Struct, tag=4, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Server → keeper: the message is handled. `reply` goes to the front end as it is."""

    state: bytes
    reply: bytes


FromKeeper = FrontMessage | FrontGone | Resumed

_from_keeper = msgspec.msgpack.Decoder(FromKeeper)
_handled = msgspec.msgpack.Decoder(Handled)


def encode_handled(state: bytes, reply: bytes) -> bytes:
    """The answer to a `FrontMessage`."""
    return msgspec.msgpack.encode(Handled(state, reply))


def receive(line: socket.socket) -> tuple[FromKeeper, list[int]]:
    """What the keeper says, and the descriptors that are ours then. Raises BlockingIOError, and EOFError at its end."""
    data, descriptors = packet.receive(line)
    if not data:
        raise EOFError
    return _from_keeper.decode(data), descriptors


class Custody:
    """One device's front end, one connection at a time, any number in succession. Never blocks."""

    def __init__(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._front: FrontSocket | None = None
        self._message: Message | None = None
        self._state = b""
        self._held: dict[int, int] = {}
        self._line: socket.socket | None = None
        self._broke: FrontGone | None = None

    def watched(self) -> list[int]:
        """Descriptors to wait for; `look` when one is readable."""
        waiting = [] if self._line is None else [self._line.fileno()]
        if self._front is None:
            return [*waiting, self._listening.fileno()]
        return waiting if self._message is not None else [*waiting, self._front.socket.fileno()]

    def hand_over(self) -> int:
        """A server's end of a new line, on which it finds all that it must know. What the one before it had answered
        counts; it has ended."""
        self._take_answer()
        if self._line is not None:
            self._line.close()
        self._line, theirs = packet.pair()
        if self._state:
            self._tell(Resumed(self._state, list(self._held)), list(self._held.values()))
        if self._message is not None:
            self._pass_on(self._message)
        if self._broke is not None:
            self._tell(self._broke, [])
        return theirs.detach()

    def leave(self) -> None:
        """In a child that is to be the server: let go of what the keeper alone has."""
        self._listening.close()
        if self._line is not None:
            self._line.close()
        if self._front is not None:
            self._front.close()
        self._let_go()

    def look(self) -> None:
        """Take what has come."""
        self._take_answer()
        if self._front is None:
            self._accept()
        if self._front is not None and self._message is None:
            self._read(self._front)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError:
            return
        self._front = FrontSocket(sock)

    def _read(self, front: FrontSocket) -> None:
        try:
            self._message = front.receive()
        except EOFError:
            self._hang_up(FrontGone())
        except ProtocolError as error:
            self._hang_up(FrontGone(error.what, error.evidence))
        if self._message is not None:
            self._pass_on(self._message)

    def _pass_on(self, message: Message) -> None:
        self._tell(FrontMessage(message.code, message.flags, message.payload), list(message.descriptors))

    def _tell(self, what: FromKeeper, descriptors: list[int]) -> None:
        """A server that is dead hears nothing; its successor is told again."""
        if self._line is not None:
            try:
                packet.send(self._line, msgspec.msgpack.encode(what), descriptors)
            except OSError:
                self._line.close()
                self._line = None

    def _take_answer(self) -> None:
        if self._line is None:
            return
        try:
            data, _ = packet.receive(self._line)
        except OSError:
            return
        if data:
            self._handled(_handled.decode(data))
        else:
            self._line.close()
            self._line = None

    def _handled(self, answer: Handled) -> None:
        message, self._message = self._message, None
        if message is None or self._front is None:
            return
        self._state = answer.state
        self._keep(message)
        if answer.reply:
            try:
                self._front.send(answer.reply)
            except EOFError:
                self._hang_up(FrontGone())
            except ProtocolError as error:
                self._hang_up(FrontGone(error.what, error.evidence))

    def _keep(self, message: Message) -> None:
        """Hold the descriptors of a message in the place of those that came with the last one of its kind."""
        if message.code not in WITH_DESCRIPTORS:
            packet.close_all(message.descriptors)
            return
        if message.code in self._held:
            os.close(self._held.pop(message.code))
        if message.descriptors:
            self._held[message.code] = message.descriptors[0]
            packet.close_all(message.descriptors[1:])

    def _hang_up(self, why: FrontGone) -> None:
        if self._front is not None:
            self._front.close()
        self._front = None
        self._let_go()
        self._broke = why if why.broke else None
        self._tell(why, [])

    def _let_go(self) -> None:
        packet.close_all([*self._held.values(), *(self._message.descriptors if self._message is not None else ())])
        self._held.clear()
        self._message, self._state = None, b""
