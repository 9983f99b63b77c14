"""The management console of User-Mode Linux: one datagram asks its kernel, one or more answer
(`arch/um/drivers/mconsole.h`)."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from msgspec import Struct

from kernel.abi.status import DomainFault

__all__ = ["Mconsole", "Said", "pack_request", "unpack_reply"]

MAGIC, VERSION, MAX_DATA = 0xCAFEBABE, 2, 512
_REQUEST = struct.Struct(f"<III{MAX_DATA}s")
"""`struct mconsole_request`: magic, version, length, data."""
_REPLY = struct.Struct("<III")
"""`struct mconsole_reply`: error, whether more follows, length with the closing NUL. As much data as that follows."""

RETRY_S = 0.02
"""Between two tries to reach a kernel that boots: a quarter of a boot."""

REPEAT_S = 0.5
"""Until a request is said again, once: one that came before the kernel listened to the socket may lie there unseen."""


class Said(Struct, frozen=True):
    """What the kernel said to a request. `error` is 0 for a success."""

    error: int
    text: str


def pack_request(command: str) -> bytes:
    """A request as it goes to the kernel."""
    data = command.encode()
    return _REQUEST.pack(MAGIC, VERSION, len(data), data)


def unpack_reply(data: bytes) -> Said:
    """A reply, the first of its kind where there are more. Raises DomainFault for what is none: a guest wrote it."""
    if len(data) < _REPLY.size:
        raise DomainFault(None, "a reply of the management console that is cut short", size=len(data))
    error, _more, length = _REPLY.unpack_from(data)
    if not 0 < length <= MAX_DATA or len(data) < _REPLY.size + length:
        raise DomainFault(None, "a reply of the management console with a wrong length", length=length)
    return Said(error, data[_REPLY.size : _REPLY.size + length - 1].decode(errors="replace"))


class Mconsole:
    """The console of one kernel, by the path of its socket. Only for commands that may be said twice."""

    def __init__(self, path: str, own_name: str) -> None:
        """`own_name`: where the names of our own sockets begin."""
        self._path = path
        self._own_name = own_name
        self._asked = 0

    async def ask(self, command: str) -> Said:
        """Ask, and wait for the answer: as long as the kernel takes, so the caller sets a deadline.

        Raises DomainFault where the answer is none.
        """
        request = pack_request(command)
        with self._own_socket() as own:
            await self._send(own, request)
            with trio.move_on_after(REPEAT_S):
                return unpack_reply(await own.recv(_REPLY.size + MAX_DATA))
            await self._send(own, request)
            return unpack_reply(await own.recv(_REPLY.size + MAX_DATA))

    def tell(self, command: str) -> None:
        """Say something without waiting: whoever is not there, or takes nothing more, does not hear it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own, contextlib.suppress(OSError):
            own.setblocking(False)
            own.sendto(pack_request(command), self._path)

    async def _send(self, own: trio.socket.SocketType, request: bytes) -> None:
        while True:
            try:
                await own.sendto(request, self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(RETRY_S)
            else:
                return

    @contextmanager
    def _own_socket(self) -> Iterator[trio.socket.SocketType]:
        """A socket with a name of its own, so that a late answer to an earlier request reaches nobody."""
        self._asked += 1
        name = f"{self._own_name}{self._asked}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.bind(name)
            try:
                yield trio.socket.from_stdlib_socket(own)
            finally:
                os.unlink(name)
