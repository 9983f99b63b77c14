"""The way to a hypervisor: which admin socket, and one connection to it."""

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kernel.abi import packet
from kernel.abi.codec import MAX_PACKET, Codec, encode
from kernel.abi.run import ADMIN_SOCKET, LATEST, runs_root
from kernel.abi.status import DomainFault, Status
from triovisor.mistakes import Mistake

__all__ = ["Connection", "TvError", "connect", "find_socket"]

MAX_SOCKET_PATH = 107
"""Bytes in `sun_path` before its closing NUL (unix(7))."""

CONNECT_S = 10
"""For the hypervisor to take the connection from its queue."""


class TvError(Mistake):
    """What was asked for did not happen. `why` is one line for a person."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why

    @classmethod
    def invalid(cls, why: str) -> "TvError":
        """What was asked for cannot be."""
        return cls(Status.EINVAL, why)

    @classmethod
    def unknown(cls, why: str) -> "TvError":
        """What was asked about is not there."""
        return cls(Status.ENOENT, why)


def find_socket(run: str | os.PathLike[str] | None = None) -> Path:
    """The admin socket of the run folder (or the socket) that is given or `$TRIOVISOR_RUN` names.

    Without either, of the latest run in `$TRIOVISOR_RUNS` or `./runs`.
    """
    chosen = run or os.environ.get("TRIOVISOR_RUN")
    path = Path(chosen) if chosen else runs_root() / LATEST
    path = path.absolute()
    return path if path.name == ADMIN_SOCKET or path.is_socket() else path / ADMIN_SOCKET


@contextmanager
def connect(path: Path, messages: Any) -> Iterator["Connection"]:
    """A connection on which the hypervisor's side says `messages`. Raises TvError where there is none to be had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_S, 0))
        try:
            _connect(sock, path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise TvError(Status.ENOENT, f"no hypervisor at {path}: start one with: python -m kernel") from error
        except BlockingIOError as error:
            raise TvError(Status.ETIMEDOUT, f"{path}: the hypervisor takes no connection for {CONNECT_S} s") from error
        except PermissionError as error:
            raise TvError(Status.EPERM, f"{path}: not yours: run tv as the user who started the hypervisor") from error
        except OSError as error:
            raise TvError(Status.EINVAL, f"{path}: {error.strerror}: name a run folder with --run") from error
        sock.setblocking(False)
        yield Connection(sock, Codec(messages))


def _connect(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        sock.connect(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


class Connection:
    """One connection. The socket does not block; `send` and `receive` wait."""

    def __init__(self, sock: socket.socket, codec: Codec) -> None:
        self.socket = sock
        self.codec = codec

    def send(self, message: Struct, timeout_s: float) -> None:
        """Send one message. Raises TvError when it is too long, or nobody takes it."""
        data = encode([message])
        if len(data) > MAX_PACKET:
            raise TvError(Status.EINVAL, f"{len(data)} bytes of request: a packet has at most {MAX_PACKET}")
        self._wait(select.POLLOUT, timeout_s)
        try:
            packet.send(self.socket, data)
        except OSError as error:
            raise _lost() from error

    def receive(self, timeout_s: float | None) -> list[Any]:
        """The next packet's messages. Raises TvError when none comes, or the connection ends."""
        self._wait(select.POLLIN, timeout_s)
        messages = self.take()
        if not messages:
            raise _lost()
        return messages

    def take(self) -> list[Any]:
        """A packet's messages, at once; none at the end of the connection.

        Raises BlockingIOError where nothing has come, TvError for what is not of the protocol.
        """
        try:
            data, descriptors = packet.receive(self.socket)
            packet.close_all(descriptors)
            return self.codec.decode(data) if data else []
        except BlockingIOError:
            raise
        except OSError:
            return []
        except (DomainFault, msgspec.DecodeError) as error:
            why = f"Dom0 speaks another protocol ({error}): use the tv of this hypervisor"
            raise TvError(Status.EIO, why) from error

    def _wait(self, event: int, timeout_s: float | None) -> None:
        poll = select.poll()
        poll.register(self.socket, event)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        if not poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000):
            raise TvError(Status.ETIMEDOUT, f"Dom0 said nothing for {timeout_s:g} s: its log is in the run folder")


def _lost() -> TvError:
    return TvError(Status.EIO, "Dom0 ended the connection: it was restarted, or refuses your user; try again")
