"""A pipe that every actor of a guest passes bytes through, so that none is lost with an actor and none comes twice."""

import fcntl
import os
import struct
import termios

import trio

__all__ = ["Sluice"]


class Sluice:
    """Nobody else has an end of it, and it outlives the actor. Bytes leave it in one system call (splice(2)): whenever
    the actor is killed, what is still in it tells how far they had come.

    What is filled in at once is to be passed on before the next. The smallest pipe takes 4,096 bytes at once.
    """

    def __init__(self, read_end: int, write_end: int) -> None:
        """Both not blocking. They stay the caller's."""
        self._read_end = read_end
        self._write_end = write_end

    @property
    def held(self) -> int:
        """How many bytes are in it."""
        (held,) = struct.unpack("i", fcntl.ioctl(self._read_end, termios.FIONREAD, bytes(4)))
        return int(held)

    def fill(self, data: bytes) -> None:
        """At most 4,096 bytes, while it is empty: all of them, or none where the actor is killed."""
        os.write(self._write_end, data)

    def fill_from(self, source: int, size: int) -> None:
        """As many as there is room for of what the source has, while it is empty."""
        os.splice(source, self._write_end, size, flags=os.SPLICE_F_NONBLOCK)

    def drain(self) -> None:
        """Drop what is in it."""
        while held := self.held:
            os.read(self._read_end, held)

    async def pass_on(self, to: int) -> None:
        """Until it is empty. What `to` has no reader for is dropped."""
        while held := self.held:
            try:
                os.splice(self._read_end, to, held, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(to)
            except (BrokenPipeError, ConnectionResetError):
                self.drain()
