"""One domain's connection: messages of `kernel.abi.store_io` on an event channel, which ends with us."""

import socket

import msgspec

from drivers.store.store import Store
from kernel.abi import packet
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.status import DomainFault
from kernel.abi.store_io import StoreEvent, StoreReply, StoreRequest

__all__ = ["Channel", "ChannelBroken"]

_codec = Codec(StoreRequest)


class ChannelBroken(Exception):
    """The domain broke the rules of its channel."""


class Channel:
    """A session (`sessions.Session`) with a domain. What is unfinished when it ends, its next one finishes."""

    def __init__(self, store: Store, connection: int, descriptor: int) -> None:
        """The descriptor is ours from now on."""
        self._store = store
        self._connection = connection
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self.descriptor = descriptor
        self._unsent: tuple[bytes, int] | None = None
        """A packet, and the event in it."""
        self.blocked = False
        """Output waits for room in the channel."""

    def turn(self) -> bool:
        """Answer one packet and send what events there are. False when there was nothing to do.

        Raises EOFError when the domain has gone, ChannelBroken when it should.
        """
        if self._unsent is not None and not self._send(*self._unsent):
            return False
        return self._send_event() or (self._store.may_ask(self._connection) and self._answer())

    def _answer(self) -> bool:
        try:
            data, descriptors = packet.receive(self._socket)
        except BlockingIOError:
            return False
        except (OSError, DomainFault) as error:
            raise EOFError from error
        packet.close_all(descriptors)
        if not data:
            raise EOFError
        try:
            messages = _codec.decode(data)
        except msgspec.DecodeError as error:
            raise ChannelBroken(f"an unreadable packet: {error}") from error
        if len(messages) != 1:
            raise ChannelBroken(f"{len(messages)} requests in a packet: one is under way at a time")
        self._send(encode([self._take(messages[0])]))
        return True

    def _take(self, message: StoreRequest | Undecodable) -> StoreReply:
        if isinstance(message, Undecodable):
            raise ChannelBroken(f"an unreadable message: {message.why}")
        return StoreReply(message.number, *self._do(message))

    def _do(self, request: StoreRequest) -> tuple[int, bytes]:
        """Do what is asked, unless it was done before: an answer may have died with a predecessor."""
        last = self._store.last(self._connection)
        if last is not None and request.number <= last[0]:
            if request.number < last[0]:
                raise ChannelBroken(f"request {request.number} after request {last[0]}")
            return last[1], last[2]
        return self._store.request(self._connection, request.number, request.op, request.transaction, request.body)

    def _send_event(self) -> bool:
        """One that is in the channel is delivered: it lies there whatever becomes of us."""
        event = self._store.next_event(self._connection)
        if event is None:
            return False
        self._send(encode([StoreEvent(*event)]), event[0])
        return True

    def _send(self, data: bytes, event: int = 0) -> bool:
        try:
            packet.send(self._socket, data)
        except BlockingIOError:
            self._unsent, self.blocked = (data, event), True
            return False
        except OSError:
            raise EOFError from None
        self._unsent, self.blocked = None, False
        if event:
            self._store.event_sent(self._connection, event)
        return True

    def close(self) -> None:
        self._socket.close()
