"""The guest's console, front end: bytes from its kernel to the log keeper's pipe, and a look at the last of them."""

import os
import socket

import trio

__all__ = ["Console"]

READ_BYTES = 65536

REMEMBERED_BYTES = 4096
"""Enough for the kernel's last words, from which it is told how the guest ended."""


class Console:
    """One end of the guest's console line, and the pipe that keeps what it says."""

    def __init__(self, pipe: int) -> None:
        ours, self.guests_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = trio.socket.from_stdlib_socket(ours)
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self.last = b""

    async def relay(self) -> None:
        """Until the guest's end is closed. A keeper that does not keep up holds the guest's console up, and
        nothing else."""
        while data := await self._socket.recv(READ_BYTES):
            self.last = (self.last + data)[-REMEMBERED_BYTES:]
            await self._keep(data)

    async def _keep(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._pipe, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._pipe)
            except BrokenPipeError:
                return
