"""A vhost-user front end for tests: it speaks to a terminator as User-Mode Linux does, or worse."""

import array
import os
import socket
import struct

from tests.domains.virtio.guest_driver import AVAILABLE, MEMORY_BYTES, TABLE, USED, GuestDriver

__all__ = ["FrontEnd", "packed"]

VERSION, NEEDS_REPLY = 1, 8
USER_ADDRESS = 0x7000_0000


def packed(code: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    """One message."""
    return struct.pack("<III", code, flags, len(payload)) + payload


class FrontEnd:
    """The guest's end of a vhost-user connection, and the device driver's memory behind it."""

    def __init__(self, sock: socket.socket, guest: GuestDriver) -> None:
        sock.settimeout(10)
        self.socket = sock
        self.guest = guest
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)

    def send(self, code: int, payload: bytes = b"", descriptors: tuple[int, ...] = (), flags: int = VERSION) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([packed(code, payload, flags)], ancillary)

    def ask(self, code: int, payload: bytes = b"", descriptors: tuple[int, ...] = (), flags: int = VERSION) -> bytes:
        """Send, and return the answer's payload. Raises EOFError when the device hangs up."""
        self.send(code, payload, descriptors, flags)
        answered, flags, size = struct.unpack("<III", self._receive(12))
        assert (answered, flags) == (code, 5)
        return self._receive(size)

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def set_up(self, *, features: int = 0x1_7000_2246) -> None:
        """The messages of User-Mode Linux, in its order: everything until requests can flow."""
        channel, other = socket.socketpair()
        self.send(3)
        self.ask(1)
        self.ask(15)
        self.send(16, struct.pack("<Q", 0x228))
        assert self.ask(21, b"", (channel.fileno(),), VERSION | NEEDS_REPLY) == bytes(8)
        channel.close()
        other.close()
        self.send(2, struct.pack("<Q", features))
        self.ask(24, struct.pack("<III", 0, 60, 0) + bytes(60))
        self.send_memory()
        self.send_queue()

    def send_memory(self) -> None:
        region = struct.pack("<QQQQ", self.guest.base, MEMORY_BYTES, USER_ADDRESS, 0)
        self.send(5, struct.pack("<II", 1, 0) + region + bytes(32), (self.guest.descriptor,))

    def send_queue(self) -> None:
        """CALL, NUM, BASE, ADDR, KICK, ENABLE."""
        addresses = (USER_ADDRESS + TABLE, USER_ADDRESS + USED, USER_ADDRESS + AVAILABLE, 0)
        self.send(13, struct.pack("<Q", 0), (self.call,))
        self.send(8, struct.pack("<II", 0, self.guest.size))
        self.send(10, struct.pack("<II", 0, self.guest.offered))
        self.send(9, struct.pack("<IIQQQQ", 0, 0, *addresses))
        self.send(12, struct.pack("<Q", 0), (self.kick,))
        assert self.ask(18, struct.pack("<II", 0, 1), (), VERSION | NEEDS_REPLY) == bytes(8)

    def close(self) -> None:
        self.socket.close()
        os.close(self.kick)
        os.close(self.call)
