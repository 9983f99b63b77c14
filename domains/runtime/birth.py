"""What a zygote's children do first: the one that becomes a domain, and the one that becomes a role's zygote."""

import gc
import importlib
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import msgspec
import trio

from domains.runtime import jail, libc, memory, wall
from kernel.abi import packet
from kernel.abi.codec import encode
from kernel.abi.ids import DomId
from kernel.abi.spawn import Identity, Jail, JailLevel, SpawnRequest

__all__ = ["Entry", "Failed", "Line", "Expected", "await_order", "import_role", "level_of", "rehearse"]


class Entry(NamedTuple):
    """What a domain runs in its jail."""

    run: Callable[[str, Identity, dict[str, int], bytes, str], NoReturn]
    """Of role, identity, descriptors by name, config, level of the jail."""
    rehearse: Callable[[str, bytes], None]
    """Of role and config: run it ahead of its order, for nobody, if that is possible."""


EXIT_NOT_JAILED = 71
"""EX_OSERR of sysexits.h. The reason went to the zygote."""
EXIT_ENTRY_RAISED = 70
"""EX_SOFTWARE."""

_PR_SET_PDEATHSIG = 1
_MAX_WHY = 400


class Failed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A child's word to its zygote when it cannot become what it should."""

    step: str
    why: str


_decode_failed = msgspec.msgpack.Decoder(list[Failed]).decode
_decode_order = msgspec.msgpack.Decoder(list[SpawnRequest]).decode


@dataclass(frozen=True, slots=True)
class Line:
    """Between a zygote and one child until the child is ready: one order down, one word up.

    A child says that it is ready through the eventfd. Writing to a socket would put the reader on the writer's CPU,
    behind the writer (the wake-up is marked as synchronous), for as long as the role's first milliseconds take.
    """

    orders: socket.socket
    ready: int

    @classmethod
    def pair(cls) -> tuple["Line", "Line"]:
        """The zygote's end and the child's. They share the eventfd; `close` closes it too."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours, ready := os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)), cls(theirs, ready)

    def descriptors(self) -> tuple[int, int]:
        """Both."""
        return self.orders.fileno(), self.ready

    def say_ready(self) -> None:
        """All is done: the last that a child says."""
        os.eventfd_write(self.ready, 1)
        self.close()

    def say_failed(self, step: str, why: str) -> NoReturn:
        """Which step failed, and end."""
        self.orders.send(encode([Failed(step, why[:_MAX_WHY])]))
        os._exit(EXIT_NOT_JAILED)

    def heard(self) -> Failed | None:
        """What the child said, None for ready. Call it when either descriptor is readable."""
        try:
            os.eventfd_read(self.ready)
        except BlockingIOError:
            raw = self.orders.recv(4096)
            return _decode_failed(raw)[0] if raw else Failed("jail", "the child died without a word")
        return None

    def close(self) -> None:
        """Close both."""
        self.orders.close()
        os.close(self.ready)


def level_of(host: jail.Host) -> JailLevel:
    """What the host's jails amount to."""
    return "reduced" if host.missing else "full"


def rehearse() -> None:
    """Do once what every domain does next, so that what is made on first use is there, and its memory touched."""
    trio.run(_act)


async def _act() -> None:
    send, receive = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, 1)
        with trio.move_on_after(1):
            await receive.receive()


@dataclass(frozen=True, slots=True)
class Expected:
    """What a child can know before it is ordered: the domain, its jail, its role and what that is started with."""

    domid: DomId
    jail: Jail
    role: str
    config: bytes


def await_order(host: jail.Host, line: Line, entry: Entry, *, ahead: bool, expected: Expected | None) -> NoReturn:
    """Be a child without an identity until the zygote sends a `SpawnRequest` with its descriptors; then be that domain.

    `ahead`: nobody waits for it yet, so there is time to rehearse, and to enter the jail that the order will name.
    """
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        jail.close_all_but({*line.descriptors(), *host.descriptors()})
        libc.default_action(signal.SIGINT)
        libc.default_action(signal.SIGTERM)
        if ahead:
            rehearse()
        if expected is not None:
            jail.enter(host, expected.jail, expected.domid)
            entry.rehearse(expected.role, expected.config)
        _wait_readable(line.orders)
        data, descriptors = packet.receive(line.orders)
        if data:
            (request,) = _decode_order(data)
            named = dict(zip(request.fd_names, descriptors, strict=True))
            _become(host, request, named, line, entry, jailed=expected is not None)
        os._exit(0)
    except BaseException:  # it must not return into the zygote's loop, whose copy this is
        traceback.print_exc()
        os._exit(EXIT_ENTRY_RAISED)


def _wait_readable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.poll()


def _become(
    host: jail.Host, request: SpawnRequest, named: dict[str, int], line: Line, entry: Entry, *, jailed: bool
) -> NoReturn:
    try:
        if not jailed:
            jail.enter(host, request.jail, request.identity.peer.domid, named.values())
        jail.settle_in(named)
    except jail.JailFailed as failed:
        line.say_failed(failed.step, failed.why)
    line.say_ready()
    gc.enable()
    entry.run(request.role, request.identity, named, request.config, level_of(host))


def import_role(role: str, keep: Iterable[int], proc: int, line: Line) -> None:
    """Turn this fork of the base zygote into the role's zygote: its code imported, behind its wall.

    Afterwards it has `keep` and its standard three descriptors, is a process group of its own, and ends with the
    hypervisor. When the import fails it says so and exits.
    """
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    jail.close_all_but({*keep, *line.descriptors()})
    try:
        wall.put_up(role)
        importlib.import_module(role)
    except Exception as error:  # whatever a role's import raises is the role's failure
        line.say_failed("import", f"{type(error).__name__}: {error}")
    memory.settle(proc)
    line.say_ready()
