"""A file as the storage daemon has it: it holds no descriptor of an image, and asks for each byte.

So an image is this process's alone. When it is gone nobody else writes, and it is this process's own descriptor that a
write-back error is told to.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Callable

from drivers.blkback.flusher import Flusher, Job
from drivers.blkback.nbd import (
    NO_HOLE,
    REQUEST_BYTES,
    Command,
    ProtocolError,
    Request,
    offer,
    read_request,
    receive,
    receive_into,
    reply,
)
from kernel.abi.io.blkif import SECTOR_BYTES, Op, RspStatus

__all__ = ["RawExport"]

GROWING_BYTES = 1 << 60
"""An image that may be written has no size of its own: the daemon puts what it allocates at the end."""

_SLOW = {Command.FLUSH: Op.FLUSH, Command.TRIM: Op.DISCARD, Command.WRITE_ZEROES: Op.ZERO_UNMAP}
_ERRNOS = {
    RspStatus.OK: 0,
    RspStatus.NO_SPACE: errno.ENOSPC,
    RspStatus.READ_ONLY: errno.EPERM,
    RspStatus.UNSUPPORTED: errno.ENOTSUP,
}
_PASSED_ON = frozenset({errno.ENOSPC, errno.EPERM, errno.ENOMEM})


class RawExport:
    """The server's end of one connection. On one thread, but for `wake`, which a flusher's calls."""

    def __init__(self, connection: socket.socket, file: int, *, read_only: bool, wake: Callable[[], None]) -> None:
        """Takes over connection and descriptor. `wake`: call `answer_slow` soon."""
        self.connection = connection
        self._file = file
        self._read_only = read_only
        self._wake = wake
        self._flusher: Flusher | None = None
        self._buffer = bytearray()
        self._done: deque[tuple[list[Job], int]] = deque()
        self._failure: int = RspStatus.OK
        self.waits_for_us = 0
        """Requests that the flusher is at work on, however long its file system takes."""

    def offer(self) -> None:
        """Shake hands. A last part sector is a whole one. Raises ProtocolError."""
        size = -(-os.lseek(self._file, 0, os.SEEK_END) // SECTOR_BYTES) * SECTOR_BYTES
        size = size if self._read_only else GROWING_BYTES
        offer(self.connection, size, read_only=self._read_only)

    def serve(self) -> None:
        """Do one request, which has come. Raises ProtocolError."""
        request = read_request(receive(self.connection, REQUEST_BYTES))
        if request.command == Command.DISC:
            raise ProtocolError("it ended the connection")
        if self._read_only and request.command != Command.READ:
            raise ProtocolError(f"it asks for {Command(request.command).name} of what is only read")
        if request.offset + request.length > GROWING_BYTES:
            raise ProtocolError(f"it asks for what lies beyond {GROWING_BYTES}: {request}")
        if request.command == Command.READ:
            self._read(request)
        elif request.command == Command.WRITE:
            self._write(request)
        else:
            self._submit(request)

    def answer_slow(self) -> None:
        """Answer what the flusher has done."""
        while self._done:
            jobs, status = self._done.popleft()
            if status and jobs[0].op == Op.FLUSH:
                self._failure = status
            self.waits_for_us -= len(jobs)
            for job in jobs:
                self.connection.sendall(reply(job.ident, _ERRNOS.get(RspStatus(status), errno.EIO)))

    def take_failure(self) -> int:
        """The `RspStatus` of a failed flush that was not asked for yet. A write-back error is told once to a
        descriptor, and the daemon flushes for reasons of its own."""
        failure, self._failure = self._failure, RspStatus.OK
        return failure

    def close(self) -> None:
        """Give up the file, or leave that to the flusher."""
        self.connection.close()
        if self._flusher is not None:
            self._flusher.close()
        else:
            os.close(self._file)

    def _read(self, request: Request) -> None:
        """What is beyond the end reads as zeros."""
        view = self._room(request.length)
        done = 0
        try:
            while done < request.length:
                count = os.preadv(self._file, [view[done:]], request.offset + done)
                if not count:
                    view[done:] = bytes(request.length - done)
                    break
                done += count
        except OSError as error:
            self.connection.sendall(reply(request.handle, _errno(error)))
            return
        self.connection.sendall(reply(request.handle, 0))
        self.connection.sendall(view)

    def _write(self, request: Request) -> None:
        view = self._room(request.length)
        receive_into(self.connection, view)
        done, error_number = 0, 0
        try:
            while done < request.length:
                done += os.pwrite(self._file, view[done:], request.offset + done)
        except OSError as error:
            error_number = _errno(error)
        self.connection.sendall(reply(request.handle, error_number))

    def _submit(self, request: Request) -> None:
        if self._flusher is None:
            self._flusher = Flusher(self._file, self._flusher_has_done)
        op = _SLOW[Command(request.command)]
        if request.command == Command.WRITE_ZEROES:
            end = request.offset + request.length
            if os.fstat(self._file).st_size < end:
                os.ftruncate(self._file, end)
            op = Op.WRITE_ZEROES if request.flags & NO_HOLE else op
        self.waits_for_us += 1
        self._flusher.submit(Job(None, request.handle, op, request.offset, request.length))

    def _flusher_has_done(self, jobs: list[Job], status: int) -> None:
        """On the flusher's thread."""
        self._done.append((jobs, status))
        self._wake()

    def _room(self, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]


def _errno(error: OSError) -> int:
    number = errno.ENOSPC if error.errno == errno.EDQUOT else error.errno or 0
    return number if number in _PASSED_ON else errno.EIO
