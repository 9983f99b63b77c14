"""A SEQPACKET channel under Trio: try the system call first, wait only when the kernel says so."""

import socket
from collections.abc import Sequence

import trio

from kernel.abi import packet
from kernel.abi.packet import Packet

__all__ = ["Channel"]


class Channel:
    """One end of a channel. Any task may send, each packet whole; one receives. Closing it is the owner's affair."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)
        self._full = trio.Lock()

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one packet whole, waiting while the peer's queue is full. Raises OSError when the peer is gone."""
        while True:
            try:
                return packet.send(self.socket, data, descriptors)
            except BlockingIOError:
                async with self._full:
                    await trio.lowlevel.wait_writable(self.socket)

    async def receive(self) -> Packet:
        """Take one packet; empty at the end of the stream. Raises DomainFault for one cut short, OSError on a reset."""
        while True:
            try:
                return packet.receive(self.socket)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)

    def look(self) -> Packet:
        """Take one packet that is there already; empty where there is none, or no more to come. Raises DomainFault."""
        try:
            return packet.receive(self.socket)
        except OSError:
            return Packet(b"", [])

    def close(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
