"""PID 1 of a guest's jail: parent of the guest's actor and of its operating system, so that each can end without the
other.

The actor speaks to it over a SEQPACKET pair, msgpack both ways. Both are of one trust domain.
"""

import fcntl
import os
import select
import signal
import socket
from typing import NoReturn

import msgspec
from msgspec import Struct

from domains.guests.uml import prepare_to_exec
from domains.guests.undertaker import Undertaker, end_group
from kernel.abi import packet

__all__ = ["OsEnded", "OsStart", "become_reaper", "decode_ended", "encode_start"]

SIGNAL_BASE = 128
EXIT_UNATTENDED = 71
"""EX_OSERR of sysexits.h."""


class OsStart(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Actor → reaper: start the operating system on one CPU.

    Rides: the kernel's descriptor, then those that it keeps, whose numbers in the new process are `keep`. 0, 1 and 2
    are `/dev/null` where they are not among them.
    """

    argv: list[str]
    keep: list[int]
    cpu: int
    memory_folder: str
    """Where its memory is a file: on a tmpfs from which code may be mapped."""


class OsEnded(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Reaper → actor: the operating system's first process has ended; `status` as `os.waitstatus_to_exitcode`
    gives it."""

    status: int


def encode_start(start: OsStart) -> bytes:
    """The order, as it goes to the reaper."""
    return msgspec.msgpack.encode(start)


def decode_ended(data: bytes) -> OsEnded:
    """What the reaper said."""
    return msgspec.msgpack.decode(data, type=OsEnded)


def become_reaper(keep_out_of: list[int]) -> int:
    """Fork. The child, the guest's actor, goes on with the descriptor to its reaper; the parent never returns.

    `keep_out_of`: descriptors that the reaper must not hold, or their other ends would never see an end.
    """
    reapers, actors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undertaker = None if os.getpid() == 1 else Undertaker.start()
    actor = os.fork()
    if actor == 0:
        if undertaker is not None:
            undertaker.let_go()
        reapers.close()
        return actors.detach()
    actors.close()
    packet.close_all(keep_out_of)
    _Reaper(actor, reapers, undertaker).reap()


class _Reaper:
    """Waits for every process of the guest, starts its operating system, and ends when the actor does."""

    def __init__(self, actor: int, link: socket.socket, undertaker: Undertaker | None) -> None:
        self._actor = actor
        self._link = link
        self._system: int | None = None
        self._undertaker = undertaker
        signal.signal(signal.SIGUSR2, lambda number, _frame: os.kill(actor, number))
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write)

    def reap(self) -> NoReturn:
        """Never returns: the process ends with the actor, and takes the namespace with it."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._link, select.POLLIN)
        while True:
            for descriptor, _events in poll.poll():
                if descriptor == self._wake_read:
                    os.read(self._wake_read, 512)
                    self._bury_all()
                elif not self._take_order():
                    poll.unregister(self._link)

    def _bury_all(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._bury(pid, os.waitstatus_to_exitcode(status))

    def _bury(self, pid: int, status: int) -> None:
        if pid == self._actor:
            os._exit(status if status >= 0 else SIGNAL_BASE - status)
        if self._undertaker is not None and pid == self._undertaker.pid:
            self._end_without_undertaker()
        if pid == self._system:
            self._end_helpers(pid)
            self._system = None
            self._link.send(msgspec.msgpack.encode(OsEnded(status)))

    def _end_helpers(self, system: int) -> None:
        """The operating system's helpers outlive it where it was killed. What is told then of the group is over."""
        end_group(system)
        if self._undertaker is not None:
            self._undertaker.watch(0)

    def _end_without_undertaker(self) -> NoReturn:
        """Nobody would see to it that all of the guest ends with this process."""
        if self._system is not None:
            end_group(self._system)
        os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(EXIT_UNATTENDED)

    def _take_order(self) -> bool:
        """Start what the actor asks for. False when the actor has closed its end."""
        data, descriptors = packet.receive(self._link)
        if not data:
            return False
        order = msgspec.msgpack.decode(data, type=OsStart)
        self._system = os.fork()
        if self._system == 0:
            _lead_group(self._undertaker)
            _exec(order, descriptors)
        packet.close_all(descriptors)
        return True


def _lead_group(undertaker: Undertaker | None) -> None:
    """The operating system, its helpers and the processes in it are one group, which the undertaker knows before any
    of them runs."""
    os.setsid()
    if undertaker is not None:
        undertaker.watch(os.getpid())


def _exec(order: OsStart, descriptors: list[int]) -> NoReturn:
    """In the forked child: put the descriptors where the command line says, and become the operating system."""
    try:
        kernel, *kept = descriptors
        signal.set_wakeup_fd(-1)
        for handled in (signal.SIGCHLD, signal.SIGUSR2):
            signal.signal(handled, signal.SIG_DFL)
        kernel, *kept = (_above(descriptor, max(order.keep) + 1) for descriptor in (kernel, *kept))
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for descriptor, number in zip(kept, order.keep, strict=True):
            os.dup2(descriptor, number, inheritable=True)
        os.sched_setaffinity(0, {order.cpu})
        prepare_to_exec()
        os.set_inheritable(kernel, True)
        os.execve(kernel, order.argv, {"HOME": "/tmp", "TMPDIR": order.memory_folder, "PATH": "/usr/bin:/bin"})
    except OSError as error:
        os.write(2, f"cannot start the guest's kernel: {error}\n".encode())
    finally:
        os._exit(127)


def _above(descriptor: int, lowest: int) -> int:
    """A copy of a descriptor that no number in use here can overwrite."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
