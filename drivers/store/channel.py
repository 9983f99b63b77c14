"""One domain's connection: messages of `kernel.abi.store_io` on an event channel, which ends with us."""

import socket

import msgspec

from drivers.store.store import Store
from kernel.abi import packet
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.status import DomainFault
from kernel.abi.store_io import StoreEvent, StoreReply, StoreRequest, StoreSeen, ToStore

__all__ = ["Channel", "ChannelBroken"]

MAX_UNSEEN = 16
"""Events that a client was sent and has not said to have seen. The others wait in the store, which bounds them."""

_codec = Codec(ToStore)


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
        self._unsent: bytes | None = None
        self._seen = self._told = 0
        self.blocked = False
        """Output waits for room in the channel."""

    def turn(self) -> bool:
        """Answer one packet and send what events there are. False when there was nothing to do.

        Raises EOFError when the domain has gone, ChannelBroken when it should.
        """
        if self._unsent is not None and not self._send(self._unsent):
            return False
        return self._answer() or self._send_events()

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
        replies = [reply for message in messages if (reply := self._take(message)) is not None]
        if replies:
            self._send(encode(replies))
        return True

    def _take(self, message: object) -> StoreReply | None:
        match message:
            case StoreRequest(number=number):
                return StoreReply(number, *self._do(message))
            case StoreSeen(number=number):
                self._seen = self._store.event_sent(self._connection, number)
            case Undecodable(why=why):
                raise ChannelBroken(f"an unreadable message: {why}")
        return None

    def _do(self, request: StoreRequest) -> tuple[int, bytes]:
        """Do what is asked, unless it was done before: an answer may have died with a predecessor."""
        last = self._store.last(self._connection)
        if last is not None and request.number <= last[0]:
            if request.number < last[0]:
                raise ChannelBroken(f"request {request.number} after request {last[0]}")
            return last[1], last[2]
        return self._store.request(self._connection, request.number, request.op, request.transaction, request.body)

    def _send_events(self) -> bool:
        if self._unsent is not None:
            return False
        events = self._store.events(self._connection, after=self._told, limit=MAX_UNSEEN - self._told + self._seen)
        if not events:
            return False
        self._told = events[-1][0]
        self._send(encode([StoreEvent(*event) for event in events]))
        return True

    def _send(self, data: bytes) -> bool:
        try:
            packet.send(self._socket, data)
        except BlockingIOError:
            self._unsent, self.blocked = data, True
            return False
        except OSError:
            raise EOFError from None
        self._unsent, self.blocked = None, False
        return True

    def close(self) -> None:
        self._socket.close()
