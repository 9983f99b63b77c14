"""The first process of a guest's jail, PID 1 where that has a PID namespace: parent of the guest's actor and of its
operating system, so that each can end without the other.

It keeps what must not end with an actor: both ends of the guest's lines, the connections of its device drivers
(`domains.virtio.custody`), what is in flight there. When an actor dies it forks the next one, which finds all of that.
The actor speaks to it over a SEQPACKET pair, msgpack both ways. Both are of one trust domain.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections import deque
from typing import NoReturn

import msgspec
from msgspec import Struct

from domains.guests.uml import prepare_to_exec
from domains.guests.undertaker import Undertaker, end_group
from domains.virtio.custody import Custody
from domains.virtio.in_flight import IN_FLIGHT_BYTES
from kernel.abi import packet
from kernel.abi.codec import encode
from kernel.abi.hypercalls import SchedSoftReset
from kernel.abi.roles import GuestStart, GuestVbd

__all__ = [
    "AGENT_FD", "CONSOLE_FD", "RAMDISK_FD", "OsEnded", "OsStart", "Succeeds", "become_reaper", "decode", "encode_start",
    "run_folder", "socket_path",
]  # fmt: skip

CONSOLE_FD, AGENT_FD, RAMDISK_FD = 3, 4, 5
"""Their numbers in the operating system's process."""

RUN, SHARED_MEMORY = "/run", "/dev/shm"
"""Where the full jail has mounts for sockets and for the operating system's memory, which is a file on a tmpfs from
which code may be mapped."""

NOTES_BYTES = 4096
"""Of the memory in which an actor notes what its successor is to know."""

SIGNAL_BASE = 128

EXIT_UNATTENDED = 71
"""EX_OSERR of sysexits.h: a guest without its undertaker, in the reduced jail."""

EXIT_FAILED = 70
"""EX_SOFTWARE of sysexits.h: an actor ends with it when its own code failed. A successor goes on, as after a signal."""

DEATHS, DEATHS_WINDOW_S = 20, 2.0
"""So many actors may die in so short a time. More is the guest's crash: what each of them dies of within some 20 ms,
the next one will not mend."""

RESET_S = 5.0
"""For the hypervisor to take one packet."""


class OsStart(Struct, tag=1, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Actor → reaper: start the operating system on one CPU. 0, 1 and 2 are `/dev/null` there."""

    argv: list[str]
    cpu: int


class OsEnded(Struct, tag=2, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Reaper → actor: the operating system's first process has ended; `status` as `os.waitstatus_to_exitcode`
    gives it."""

    status: int


class Succeeds(Struct, tag=3, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Reaper → actor, to each but the first, before all else: how the one before ended, and whether it had ordered the
    operating system."""

    how: str
    system_started: bool


_decoder = msgspec.msgpack.Decoder(OsStart | OsEnded | Succeeds)


def encode_start(start: OsStart) -> bytes:
    """The order, as it goes to the reaper."""
    return msgspec.msgpack.encode(start)


def decode(data: bytes) -> OsStart | OsEnded | Succeeds:
    """What either said."""
    said: OsStart | OsEnded | Succeeds = _decoder.decode(data)
    return said


def run_folder(start: GuestStart) -> str:
    """Where a guest's sockets are: a path in its jail."""
    return start.folder or RUN


def socket_path(folder: str, vbd: GuestVbd) -> str:
    """The vhost-user socket to which the guest's kernel connects for a disk."""
    return f"{folder}/{vbd.vdev}.sock"


def become_reaper(descriptors: dict[str, int], start: GuestStart) -> int:
    """Fork, now and whenever an actor has died; the parent never returns. In each child, a guest's actor, give how many
    there were before it; `descriptors` has besides what it had:

    `reaper`: a channel to the parent. `console-line`, `agent-line`: our ends of these lines. `said.read`, `said.write`,
    `typed.read`, `typed.write`: sluices of the console's. `notes`: memory for what a successor is to know.
    `vhost.VDEV`, `in-flight.VDEV` for each vbd: a line to the keeper of its connection, and its queue's table.
    """
    undertaker = None if os.getpid() == 1 else Undertaker.start()
    return _Reaper(descriptors, start, undertaker).run()


class _Reaper:
    """Waits for every process of the guest, starts its operating system, forks its actors."""

    def __init__(self, descriptors: dict[str, int], start: GuestStart, undertaker: Undertaker | None) -> None:
        self._descriptors = descriptors
        self._undertaker = undertaker
        self._memory_folder = start.folder or SHARED_MEMORY
        self._actor = 0
        self._actors = 0
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._system: int | None = None
        self._system_started = False
        self._system_ended: OsEnded | None = None
        self._link: socket.socket | None = None
        self._guests_ends: dict[int, socket.socket] = {}
        for name, number in (("console-line", CONSOLE_FD), ("agent-line", AGENT_FD)):
            ours, self._guests_ends[number] = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            descriptors[name] = ours.detach()
        for sluice in ("said", "typed"):
            ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            descriptors[f"{sluice}.read"], descriptors[f"{sluice}.write"] = ends
        descriptors["notes"] = _memory("notes", NOTES_BYTES)
        self._custodies: dict[str, Custody] = {}
        for vbd in start.vbds:
            self._custodies[vbd.vdev] = Custody(_listen(socket_path(run_folder(start), vbd)))
            descriptors[f"in-flight.{vbd.vdev}"] = _memory("in-flight", IN_FLIGHT_BYTES)

    def run(self) -> int:
        """Returns in each actor."""
        if self._fork_actor(""):
            return 0
        signal.signal(signal.SIGUSR1, lambda _number, _frame: self._signal_actor(signal.SIGKILL))
        signal.signal(signal.SIGUSR2, lambda number, _frame: self._signal_actor(number))
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write)
        while True:
            for descriptor in self._wait():
                if descriptor == self._wake_read:
                    os.read(self._wake_read, 512)
                elif self._link is not None and descriptor == self._link.fileno():
                    self._take_order()
            for custody in self._custodies.values():
                custody.look()
            died = self._bury_all()
            if died is not None and self._replace(died):
                signal.set_wakeup_fd(-1)
                packet.close_all([self._wake_read, wake_write])
                return self._actors

    def _signal_actor(self, number: int) -> None:
        """The hypervisor, which cannot see it, wants it ended (SIGUSR1) or heard (SIGUSR2)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._actor, number)

    def _wait(self) -> list[int]:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self._link is not None:
            poll.register(self._link, select.POLLIN)
        for custody in self._custodies.values():
            for descriptor in custody.watched():
                poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll()]

    def _bury_all(self) -> int | None:
        """Wait for every process that has ended. The actor's end if it is among them."""
        died = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return died
            if pid == 0:
                return died
            if pid == self._actor:
                died = os.waitstatus_to_exitcode(status)
            elif self._undertaker is not None and pid == self._undertaker.pid:
                self._end_unattended()
            elif pid == self._system:
                self._end_helpers(pid)
                self._system = None
                self._system_ended = OsEnded(os.waitstatus_to_exitcode(status))
                self._tell(self._system_ended)

    def _end_helpers(self, system: int) -> None:
        """The operating system's helpers outlive it where it was killed. What is told then of the group is over."""
        end_group(system)
        if self._undertaker is not None:
            self._undertaker.watch(0)

    def _end_unattended(self) -> NoReturn:
        """The undertaker is gone: nobody would see to it that all of the guest ends with this process."""
        if self._system is not None:
            end_group(self._system)
        os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(EXIT_UNATTENDED)

    def _replace(self, status: int) -> bool:
        """The actor has ended: another goes on, or the guest ends with it. True in the other one."""
        self._take_order()
        now = time.monotonic()
        too_often = len(self._deaths) == DEATHS and now - self._deaths[0] < DEATHS_WINDOW_S
        self._deaths.append(now)
        if too_often or not (status < 0 or status == EXIT_FAILED):
            os._exit(status if status >= 0 else SIGNAL_BASE - status)
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._reset(how)
        return self._fork_actor(how)

    def _reset(self, how: str) -> None:
        """Tell the hypervisor at once, for the next actor: it has work to do meanwhile."""
        control = self._descriptors["control"]
        poll = select.poll()
        poll.register(control, select.POLLOUT)
        if not poll.poll(RESET_S * 1000):
            os._exit(EXIT_FAILED)
        with socket.socket(fileno=os.dup(control)) as channel:
            packet.send(channel, encode([SchedSoftReset(how)]))

    def _fork_actor(self, how: str) -> bool:
        """True in the child. `how` its predecessor ended, if there was one."""
        if self._link is not None:
            self._link.close()
        self._link, theirs = packet.pair()
        lines = {f"vhost.{vdev}": custody.hand_over() for vdev, custody in self._custodies.items()}
        if how:
            self._actors += 1
            self._tell(Succeeds(how, self._system_started))
            if self._system_ended is not None:
                self._tell(self._system_ended)
        self._actor = os.fork()
        if self._actor == 0:
            self._leave()
            self._descriptors.update(lines, reaper=theirs.detach())
            return True
        theirs.close()
        packet.close_all(list(lines.values()))
        return False

    def _leave(self) -> None:
        """In the child: let go of what the reaper alone has, or its other ends would never see an end."""
        for handled in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(handled, signal.SIG_DFL)
        if self._link is not None:
            self._link.close()
        if self._undertaker is not None:
            self._undertaker.let_go()
        for custody in self._custodies.values():
            custody.leave()
        self._close_systems_own()

    def _close_systems_own(self) -> None:
        """What only the operating system is to have."""
        for end in self._guests_ends.values():
            end.close()
        self._guests_ends.clear()
        packet.close_all([self._descriptors.pop(name) for name in ("kernel", "ramdisk") if name in self._descriptors])

    def _tell(self, what: OsEnded | Succeeds) -> None:
        """An actor that is dead hears nothing: its successor is told."""
        if self._link is not None:
            try:
                packet.send(self._link, msgspec.msgpack.encode(what))
            except OSError:
                return

    def _take_order(self) -> None:
        """Start what the actor asks for, if it asks."""
        if self._link is None:
            return
        try:
            data, _ = packet.receive(self._link)
        except OSError:
            return
        if not data:
            self._link.close()
            self._link = None
            return
        order = decode(data)
        if not isinstance(order, OsStart) or self._system_started:
            return
        self._system_started = True
        self._system = os.fork()
        if self._system == 0:
            _lead_group(self._undertaker)
            kept = {number: end.fileno() for number, end in self._guests_ends.items()}
            kept[RAMDISK_FD] = self._descriptors["ramdisk"]
            _exec(order, self._descriptors["kernel"], kept, self._memory_folder)
        self._close_systems_own()


def _lead_group(undertaker: Undertaker | None) -> None:
    """The operating system, its helpers and the processes in it are one group, which the undertaker knows before any
    of them runs."""
    os.setsid()
    if undertaker is not None:
        undertaker.watch(os.getpid())


def _listen(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(1)
    return listening


def _memory(name: str, size: int) -> int:
    """Memory that every actor maps."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.posix_fallocate(descriptor, 0, size)
    return descriptor


def _exec(order: OsStart, kernel: int, keep: dict[int, int], memory_folder: str) -> NoReturn:
    """In the forked child: put the descriptors where the command line says, and become the operating system."""
    try:
        signal.set_wakeup_fd(-1)
        for handled in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(handled, signal.SIG_DFL)
        lowest = max(keep) + 1
        kernel = _above(kernel, lowest)
        kept = {number: _above(descriptor, lowest) for number, descriptor in keep.items()}
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for number, descriptor in kept.items():
            os.dup2(descriptor, number, inheritable=True)
        os.sched_setaffinity(0, {order.cpu})
        prepare_to_exec()
        os.set_inheritable(kernel, True)
        os.execve(kernel, order.argv, {"HOME": "/tmp", "TMPDIR": memory_folder, "PATH": "/usr/bin:/bin"})
    except OSError as error:
        os.write(2, f"cannot start the guest's kernel: {error}\n".encode())
    finally:
        os._exit(127)


def _above(descriptor: int, lowest: int) -> int:
    """A copy of a descriptor that no number in use here can overwrite."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
