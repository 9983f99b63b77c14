"""The hypervisor's end of a channel. It never waits for the other end: what that does not take is kept, up to a
bound."""

import socket
from collections import deque
from collections.abc import Sequence

import trio
from msgspec import Struct

from kernel.abi import packet
from kernel.abi.codec import pack_batches
from kernel.abi.packet import Packet
from kernel.abi.status import DomainFault

__all__ = ["Link", "take"]

BACKLOG_PACKETS = 4096
"""Kept for a peer that does not read: three for each of the thousand vbds of a backend that is being cloned, and its
guests' news. One that is further behind is hung. What it asked for itself is never so much: see `flushed`."""


class Link:
    """Packets to and from one peer. `post` never blocks; `flush_forever` sends what it left."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._backlog: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._woken = trio.Event()
        self._flushed = trio.Event()
        self._flushed.set()

    def post(self, messages: Sequence[Struct], descriptors: Sequence[int] = ()) -> None:
        """Send a batch, and close `descriptors`. A peer that is gone is no error: its pidfd will say so.

        Raises DomainFault when the peer has let its backlog fill up. Descriptors ride in the first packet.
        """
        for data in pack_batches(messages):
            self._post_packet(data, tuple(descriptors))
            descriptors = ()

    def _post_packet(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        if not self._backlog and self._send_now(data, descriptors):
            return
        if len(self._backlog) >= BACKLOG_PACKETS:
            packet.close_all(descriptors)
            raise DomainFault(None, "does not read its control channel", packets=BACKLOG_PACKETS)
        if not self._backlog:
            self._flushed = trio.Event()
        self._backlog.append((data, descriptors))
        self._woken.set()

    def _send_now(self, data: bytes, descriptors: tuple[int, ...]) -> bool:
        try:
            packet.send(self._socket, data, descriptors)
        except BlockingIOError:
            return False
        except OSError:
            pass
        packet.close_all(descriptors)
        return True

    async def flush_forever(self) -> None:
        """Send the backlog as the peer makes room."""
        while True:
            while self._backlog:
                await trio.lowlevel.wait_writable(self._socket)
                if self._send_now(*self._backlog[0]):
                    self._backlog.popleft()
            self._flushed.set()
            self._woken = trio.Event()
            await self._woken.wait()

    async def flushed(self) -> None:
        """Wait until the peer has taken all but what its socket holds. `flush_forever` runs meanwhile."""
        if not self._flushed.is_set():
            await self._flushed.wait()

    async def receive(self) -> Packet:
        """Take one packet; empty when the peer has closed. Raises DomainFault for one that was cut short.

        Others have their turn first, however many packets there are.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return packet.receive(self._socket)
            except BlockingIOError:
                continue
            except ConnectionError:
                return Packet(b"", [])

    def receive_nowait(self) -> Packet:
        """Take one packet that is there already. Raises BlockingIOError when there is none."""
        return packet.receive(self._socket)

    def close(self) -> None:
        """Close the channel and what waits in it. No task may be in `receive` or `flush_forever`."""
        for _, descriptors in self._backlog:
            packet.close_all(descriptors)
        self._backlog.clear()
        self._socket.close()


def take(descriptors: list[int], count: int) -> list[int]:
    """Split the first `count` off a packet's descriptors. Raises DomainFault when there are fewer."""
    if len(descriptors) < count:
        raise DomainFault(None, "descriptors missing", needed=count, got=len(descriptors))
    taken, descriptors[:] = descriptors[:count], descriptors[count:]
    return taken
