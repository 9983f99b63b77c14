"""A client of a hypervisor, for scripts and tests: each call is one request to Dom0 over the admin socket."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kernel.abi.admin import (
    AdminConsole,
    AdminCreate,
    AdminDestroy,
    AdminDmesg,
    AdminDrivers,
    AdminDumpCore,
    AdminExec,
    AdminInfo,
    AdminInject,
    AdminList,
    AdminListLong,
    AdminPause,
    AdminRename,
    AdminReply,
    AdminRequest,
    AdminRestart,
    AdminShutdown,
    AdminStandby,
    AdminTrigger,
    AdminUnpause,
    AdminUpdateConfig,
    Answer,
    Part,
)
from kernel.abi.domctl import Trigger
from kernel.abi.guest_config import DomainInfo, DriverInfo, GuestConfig, ShutdownReason
from kernel.abi.ids import DomId, Name
from kernel.abi.status import Status
from triovisor.connection import Connection, TvError, connect, find_socket

if TYPE_CHECKING:
    from triovisor.command import Command, ExecResult

__all__ = ["Client", "Core", "TvError"]

ANSWER_S = 60.0
"""For an answer, beyond the time that the request itself asks for. The longest is a create with many disks."""

DUMP_S = 120.0
"""The hypervisor's deadline for a core."""

SYSRQ_KEYS = "abcdefghijklmnopqrstuvwxyz0123456789"

T = TypeVar("T")
Domains = list[DomainInfo]
Drivers = list[DriverInfo]


class Core(msgspec.Struct, frozen=True):
    """A core of a guest's memory: its file, on the hypervisor's host, and how large that is, with its holes."""

    path: str
    bytes: int


class Client:
    """A hypervisor's administrator. Holds nothing open between calls; may be used from several threads.

    `run` names a run folder or its socket; without it `$TRIOVISOR_RUN`, then the latest run of `$TRIOVISOR_RUNS` or
    `./runs`. Every call raises TvError when it was refused or there is no hypervisor.
    """

    def __init__(self, run: str | os.PathLike[str] | None = None) -> None:
        self.path = find_socket(run)

    def list(self, *, long: bool = False) -> Domains:
        """All domains, by domid; `long`: each guest's with its configuration."""
        return _convert(self._ask(AdminListLong() if long else AdminList()), Domains)

    def info(self, name: str) -> DomainInfo:
        """One domain."""
        return _convert(self._ask(AdminInfo(_name(name))), DomainInfo)

    def host(self) -> dict[str, Any]:
        """What the hypervisor says of the host and of itself."""
        return _convert(self._ask(AdminInfo()), dict[str, Any])

    def create(self, config: GuestConfig, *, paused: bool = False) -> DomId:
        """Create and start a guest (`triovisor.config.load` reads one from TOML). Every path in it is absolute. With
        `paused` it stands still from as soon as its kernel can, until `unpause`."""
        return _convert(self._ask(AdminCreate(config, paused)), DomId)

    def update_config(self, name: str, config: GuestConfig) -> None:
        """Have a guest be made from this at its next start. Its name, type and disks must be what they are."""
        self._ask(AdminUpdateConfig(_name(name), config))

    def rename(self, name: str, new: str) -> None:
        """Give a guest another name. EEXIST where it is taken."""
        self._ask(AdminRename(_name(name), _name(new)))

    def shutdown(self, name: str, *, reboot: bool = False, wait_s: float = 0.0) -> None:
        """Ask a guest to power off or reboot; with `wait_s`, return when it has. ETIMEDOUT if it has not by then."""
        reason = ShutdownReason.REBOOT if reboot else ShutdownReason.POWEROFF
        self._ask(AdminShutdown(_name(name), reason, wait_s), ANSWER_S + wait_s)

    def destroy(self, name: str) -> None:
        """End a guest at once; return when all of it is gone."""
        self._ask(AdminDestroy(_name(name)))

    def reset(self, name: str) -> None:
        """Press a guest's reset button: it ends at once, and starts anew; return when it has."""
        self._ask(AdminTrigger(_name(name), Trigger.RESET))

    def sysrq(self, name: str, key: str) -> None:
        """Tell a guest's kernel a key of Magic SysRq, a letter or a digit; return when it was told."""
        if len(key) != 1 or key not in SYSRQ_KEYS:
            raise TvError(Status.EINVAL, f"{key!r} is no key of SysRq: give a letter or a digit, such as h for help")
        self._ask(AdminTrigger(_name(name), Trigger.SYSRQ, key))

    def dump_core(self, name: str) -> Core:
        """Have a guest's memory written into the run's folder, as an ELF core; return when it is whole."""
        return _convert(self._ask(AdminDumpCore(_name(name)), ANSWER_S + DUMP_S), Core)

    def pause(self, name: str) -> None:
        """Have a guest stand still; return when it does. One that does already is no error."""
        self._ask(AdminPause(_name(name)))

    def unpause(self, name: str) -> None:
        """Have a guest go on that was paused; return when it does. EBUSY while a driver of it is given up."""
        self._ask(AdminUnpause(_name(name)))

    def drivers(self) -> Drivers:
        """All driver domains."""
        return _convert(self._ask(AdminDrivers()), Drivers)

    def restart_driver(self, driver: str) -> None:
        """Replace a driver's incarnation, or start one that was given up; return when it serves."""
        self._ask(AdminRestart(_name(driver)))

    def keep_standby(self, driver: str, wanted: bool) -> None:
        """Keep a standby of a driver from now on, or none; return when it is so."""
        self._ask(AdminStandby(_name(driver), wanted))

    def inject(self, driver: str, what: str, count: int = 1) -> None:
        """Make a driver fail on purpose, at the `count`-th time. The order is given on return; it may strike later."""
        self._ask(AdminInject(_name(driver), what, count))

    def dmesg(self, name: str | None = None) -> bytes:
        """The last 256 KiB of a guest's console, or of the hypervisor's log."""
        with connect(self.path, AdminReply) as connection:
            connection.send(AdminDmesg(None if name is None else _name(name)), ANSWER_S)
            return _answer(connection, ANSWER_S)[0]

    def exec(self, name: str, argv: Sequence[str | bytes], stdin: bytes = b"") -> "ExecResult":
        """Run a command in a guest to its end.

        A guest that ends under it is no error: then the result has neither status nor signal.
        """
        from kernel.abi.guest_io import Stream
        from triovisor.command import BytesSource, ExecResult, pump

        output = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        with self.command(name, argv) as command:
            ended = pump(command, BytesSource(stdin), lambda stream, data: output[stream].extend(data))
        stdout, stderr = bytes(output[Stream.STDOUT]), bytes(output[Stream.STDERR])
        return ExecResult(stdout, stderr, ended.status, ended.signal, ended.why)

    @contextmanager
    def command(self, name: str, argv: Sequence[str | bytes]) -> "Iterator[Command]":
        """A command with its streams open, as `exec` without the waiting. It is killed if it still runs at the end."""
        from kernel.abi.guest_io import ExecMessage
        from triovisor.command import Command

        with connect(self.path, AdminReply | ExecMessage) as connection:
            connection.send(AdminExec(_name(name)), ANSWER_S)
            _answer(connection, ANSWER_S)
            yield Command(connection, argv, ANSWER_S)

    @contextmanager
    def console(self, request: AdminConsole) -> Iterator[tuple[Connection, int]]:
        """A connection to a guest's console (`console_io.ConsoleMessage`), and the guest's generation."""
        from kernel.abi.console_io import ConsoleMessage

        with connect(self.path, AdminReply | ConsoleMessage) as connection:
            connection.send(msgspec.structs.replace(request, name=_name(request.name)), ANSWER_S)
            yield connection, _convert(_answer(connection, ANSWER_S)[1].value, int)

    def _ask(self, request: AdminRequest, timeout_s: float = ANSWER_S) -> Any:
        with connect(self.path, AdminReply) as connection:
            connection.send(request, timeout_s)
            parts, answer = _answer(connection, timeout_s)
            return msgspec.msgpack.decode(parts) if parts else answer.value


def _answer(connection: Connection, timeout_s: float) -> tuple[bytes, Answer]:
    """The parts before the answer, joined, and the answer. Raises TvError where it is not OK."""
    parts = bytearray()
    while True:
        for message in connection.receive(timeout_s):
            match message:
                case Part(data=data):
                    parts += data
                case Answer(status=Status.OK):
                    return bytes(parts), message
                case Answer(status=status, why=why):
                    raise TvError(status, why or status.name)
                case _:
                    raise TvError(Status.EIO, "Dom0 speaks another protocol: use the tv of this hypervisor")


def _convert(value: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise TvError(Status.EIO, f"Dom0's answer is unknown ({error}): use the tv of this hypervisor") from error


def _name(name: str) -> str:
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        why = f"{name!r} is no domain's name: letters, digits and _ . + -, a letter or digit first, at most 64"
        raise TvError(Status.EINVAL, why) from error
