"""A command that runs in a guest: its input, its output, its end."""

import contextlib
import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernel.abi import packet
from kernel.abi.codec import MAX_PACKET, encode
from kernel.abi.guest_io import CHUNK_BYTES, ExecEnded, ExecInput, ExecOutput, ExecSignal, ExecStart, Stream
from kernel.abi.status import Status
from triovisor.connection import Connection, TvError

__all__ = ["EXIT_UNKNOWN", "BytesSource", "Command", "DescriptorSource", "ExecResult", "Source", "exit_code", "pump"]

EXIT_UNKNOWN = 125
"""Exit status of `tv exec` where the command's own is not known; docker and chroot(1) use 125 likewise."""

MAX_ARGUMENTS = 256
MAX_ARGUMENT_BYTES = 32768


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command wrote, and how it ended: a `status`, a `signal`, or neither, and then `why` says what is known."""

    stdout: bytes
    stderr: bytes
    status: int | None
    signal: int | None
    why: str


def exit_code(ended: ExecEnded | ExecResult) -> int:
    """As a shell gives it: the status, 128 + the signal, or `EXIT_UNKNOWN`."""
    if ended.status is not None:
        return ended.status
    return EXIT_UNKNOWN if ended.signal is None else 128 + ended.signal


class Command:
    """A running command. Nothing here blocks: poll `fileno()`, or let `pump` do it all."""

    def __init__(self, connection: Connection, argv: Sequence[str | bytes], timeout_s: float) -> None:
        arguments = [os.fsencode(argument) for argument in argv]
        start = ExecStart(arguments)
        _check(arguments, len(encode([start])))
        self._connection = connection
        connection.send(start, timeout_s)

    def fileno(self) -> int:
        return self._connection.socket.fileno()

    def offer_input(self, data: bytes) -> bool:
        """Give the command up to `CHUNK_BYTES` of input, none for its end.

        False when its queue is full; raises OSError once it has ended.
        """
        try:
            packet.send(self._connection.socket, encode([ExecInput(data)]))
        except BlockingIOError:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send it a signal of Linux, unless it has ended or its queue is full."""
        with contextlib.suppress(OSError):
            packet.send(self._connection.socket, encode([ExecSignal(number)]))

    def take(self) -> list[ExecOutput | ExecEnded]:
        """What has come by now, an `ExecEnded` last of all."""
        try:
            messages = self._connection.take()
        except BlockingIOError:
            return []
        if any(not isinstance(message, ExecOutput | ExecEnded) for message in messages):
            raise TvError(Status.EIO, "Dom0 speaks another protocol: use the tv of this hypervisor")
        return messages or [ExecEnded(why="Dom0 ended the connection while the command ran: see tv list")]


def _check(arguments: list[bytes], size: int) -> None:
    if not arguments or not arguments[0]:
        raise TvError(Status.EINVAL, "there is no command to run: name one")
    if len(arguments) > MAX_ARGUMENTS or max(map(len, arguments)) > MAX_ARGUMENT_BYTES or size > MAX_PACKET:
        raise TvError(
            Status.EINVAL,
            f"a command line of {len(arguments)} arguments and {size} bytes: at most {MAX_ARGUMENTS} arguments of "
            f"{MAX_ARGUMENT_BYTES} bytes, {MAX_PACKET} together; give the rest as its input",
        )


class Source(Protocol):
    """Where a command's input comes from."""

    def fileno(self) -> int | None:
        """What to poll before `read`; None where there is always something."""

    def read(self) -> bytes:
        """At most `CHUNK_BYTES`, none at the end."""


class BytesSource:
    """Input that is at hand."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def fileno(self) -> None:
        return None

    def read(self) -> bytes:
        chunk, self._left = self._left[:CHUNK_BYTES], self._left[CHUNK_BYTES:]
        return bytes(chunk)


class DescriptorSource:
    """Input from a file, pipe or terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        try:
            return os.read(self._descriptor, CHUNK_BYTES)
        except OSError:
            return b""


def pump(command: Command, source: Source, sink: Callable[[Stream, bytes], Any]) -> ExecEnded:
    """Carry input and output until the command has ended. A slow sink holds the command up, and nothing else."""
    feed = _Feed(command, source)
    while True:
        poll = select.poll()
        poll.register(command, select.POLLIN | (select.POLLOUT if feed.waits_for_room else 0))
        if (descriptor := feed.polled_descriptor) is not None:
            poll.register(descriptor, select.POLLIN)
        ready = dict(poll.poll())
        if command.fileno() in ready:
            for message in command.take():
                if isinstance(message, ExecEnded):
                    return message
                sink(message.stream, message.data)
        feed.step(descriptor in ready)


class _Feed:
    """The way of the input: at most one chunk is taken from the source before there is room for it."""

    def __init__(self, command: Command, source: Source) -> None:
        self._command = command
        self._source = source
        self._chunk: bytes | None = None
        self._over = False
        self.step(False)

    @property
    def waits_for_room(self) -> bool:
        return self._chunk is not None

    @property
    def polled_descriptor(self) -> int | None:
        return None if self._over or self._chunk is not None else self._source.fileno()

    def step(self, readable: bool) -> None:
        """Take a chunk where there may be one, and offer the one that is taken."""
        if self._chunk is None and not self._over and (readable or self._source.fileno() is None):
            self._chunk = self._source.read()
        if self._chunk is None:
            return
        try:
            if not self._command.offer_input(self._chunk):
                return
        except OSError:
            self._over = True
        self._over = self._over or not self._chunk
        self._chunk = self._source.read() if self._source.fileno() is None and not self._over else None
