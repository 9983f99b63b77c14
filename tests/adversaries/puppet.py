"""A hostile domain whose every word comes from the test: real, jailed, its control channel copied into our hands."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.status import Status
from kernel.abi.upcalls import Reply, Upcall

__all__ = ["SEALS", "Puppet", "peer_of", "sealed_memory"]

PIDFD_GETFD = 438
"""arch/x86/entry/syscalls/syscall_64.tbl."""

ANSWER_S = 10.0

MOMENT_MS = 100

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_libc = ctypes.CDLL(None, use_errno=True)
_codec = Codec(Upcall)


def peer_of(text: str) -> Peer:
    """`7.3` is generation 3 of domain 7."""
    domid, _, generation = text.partition(".")
    return Peer(DomId(int(domid)), Generation(int(generation)))


def copy_descriptor(pid: int, number: int) -> int:
    """Another process's descriptor, ours as well (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(copy)


class Puppet:
    """One incarnation of a puppet domain. A context: at its end our copies are closed, the domain lives on."""

    def __init__(self, name: str, peer: str, pid: int, control: int, log: int) -> None:
        self.name = name
        self.peer = peer_of(peer)
        self.pid = pid
        self.log_pipe = copy_descriptor(pid, log)
        self.channel = socket.socket(fileno=copy_descriptor(pid, control))
        self.upcalls: list[Any] = []
        self._request = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give up our copies; again does no harm."""
        if self.channel.fileno() >= 0:
            self.channel.close()
            os.close(self.log_pipe)

    def kill(self) -> None:
        """SIGKILL to its first process: of a guest that is the reaper."""
        os.kill(self.pid, signal.SIGKILL)

    def take_all(self) -> None:
        """Take what has come, and forget it."""
        while True:
            try:
                packet.close_all(packet.receive(self.channel).descriptors)
            except BlockingIOError:
                return

    def send(self, data: bytes, descriptors: Sequence[int] = (), deadline_s: float = ANSWER_S) -> None:
        """One packet, whatever it is; waits for room. Raises OSError when the hypervisor has closed the channel."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                return packet.send(self.channel, data, descriptors)
            except BlockingIOError:
                _poll(self.channel, select.POLLOUT, end)

    def send_if_there_is_room(self, data: bytes) -> bool:
        """One packet, or none after a moment in which there was neither room nor anything to be taken."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN | select.POLLOUT)
        poll.poll(MOMENT_MS)
        try:
            packet.send(self.channel, data)
        except BlockingIOError:
            return False
        return True

    def number(self) -> int:
        """A request number that is new."""
        self._request += 1
        return self._request

    def call(self, operation: type[Struct], descriptors: Sequence[int] = (), **fields: Any) -> tuple[Reply, list[int]]:
        """One hypercall, its reply, and the descriptors that came in that packet. Upcalls are kept in `upcalls`."""
        request = self.number()
        self.send(encode([operation(request=request, **fields)]), descriptors)
        return self.reply_to(request)

    def status(self, operation: type[Struct], descriptors: Sequence[int] = (), **fields: Any) -> Status:
        """How one hypercall ended."""
        reply, came = self.call(operation, descriptors, **fields)
        packet.close_all(came)
        return reply.status

    def reply_to(self, request: int) -> tuple[Reply, list[int]]:
        end = time.monotonic() + ANSWER_S
        while True:
            messages, descriptors = self._receive(end)
            found = None
            for message in messages:
                if isinstance(message, Reply) and message.request == request:
                    found = message
                elif not isinstance(message, Reply):
                    self.upcalls.append(message)
            if found is not None:
                return found, descriptors
            packet.close_all(descriptors)

    def wait_upcall(self, kind: type[Struct]) -> Any:
        """The first upcall of this kind that was not taken yet."""
        end = time.monotonic() + ANSWER_S
        while not (found := [message for message in self.upcalls if isinstance(message, kind)]):
            messages, descriptors = self._receive(end)
            packet.close_all(descriptors)
            self.upcalls += [message for message in messages if not isinstance(message, Reply)]
        self.upcalls.remove(found[0])
        return found[0]

    def receive(self) -> tuple[list[Any], list[int]]:
        """One packet, as it comes."""
        return self._receive(time.monotonic() + ANSWER_S)

    def _receive(self, end_s: float) -> tuple[list[Any], list[int]]:
        while True:
            try:
                data, descriptors = packet.receive(self.channel)
            except BlockingIOError:
                _poll(self.channel, select.POLLIN, end_s)
                continue
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, f"the hypervisor has closed the channel of {self.name}")
            return _codec.decode(data), descriptors


def _poll(sock: socket.socket, events: int, end_s: float) -> None:
    poll = select.poll()
    poll.register(sock, events)
    left_ms = (end_s - time.monotonic()) * 1000
    if left_ms <= 0 or not poll.poll(left_ms):
        raise TimeoutError(f"the hypervisor did not take or give a packet within {ANSWER_S:g} s")


@contextmanager
def sealed_memory(seals: int = SEALS, size: int = 4096) -> Iterator[int]:
    """A memfd with these seals, closed at the end."""
    descriptor = os.memfd_create("grant", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)
