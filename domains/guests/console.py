"""The guest's console, front end: bytes from its kernel to the log keeper's pipe, and a look at the last of them."""

import os
import socket

import trio

from domains.guests.notes import Notes

__all__ = ["Console"]

READ_BYTES = 65536

REMEMBERED_BYTES = 4096
"""Enough for the kernel's last words, from which it is told how the guest ended."""


class Console:
    """One end of the guest's console line, and the pipe that keeps what it says."""

    def __init__(self, line: int, pipe: int, notes: Notes) -> None:
        self._line = socket.socket(fileno=line)
        self._line.setblocking(False)
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._notes = notes
        self.last = notes.last_words

    async def relay(self) -> None:
        """Until the guest's end is closed. A keeper that does not keep up holds the guest's console up, and
        nothing else.

        The bytes go from line to pipe in one system call (splice(2)): whenever this process is killed, each of them is
        in one of both.
        """
        while data := await self._look():
            moved = await self._move(len(data))
            self.last = (self.last + data[:moved])[-REMEMBERED_BYTES:]
            self._notes.note_last_words(self.last)

    async def _look(self) -> bytes:
        """What the guest says next, not yet taken; empty at the end."""
        while True:
            try:
                return self._line.recv(READ_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._line)
            except ConnectionError:
                return b""

    async def _move(self, size: int) -> int:
        """Move up to so many bytes on; how many. Without a keeper they are dropped."""
        while True:
            try:
                return os.splice(self._line.fileno(), self._pipe, size, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._pipe)
            except BrokenPipeError:
                return len(self._line.recv(size))
