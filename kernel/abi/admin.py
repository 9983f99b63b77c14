"""`tv` ↔ Dom0, over the admin socket (AF_UNIX SEQPACKET).

One connection is one request: one packet with one message, answered by any number of `Part`s and then one `Answer`.
A value that is too long for a packet comes in `Part`s, which are its msgpack, and the `Answer` has none.
After the OK to an `AdminExec` the connection carries `guest_io.ExecMessage`s, and ends with an `ExecEnded`.
After the OK to an `AdminConsole` the console driver has it, and it carries `console_io.ConsoleMessage`s.
The hypervisor has checked the peer's uid before Dom0 sees the connection.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from kernel.abi.codec import PART_BYTES
from kernel.abi.domctl import Trigger
from kernel.abi.guest_config import GuestConfig, ShutdownReason
from kernel.abi.ids import U63, Generation, Name
from kernel.abi.status import Status

__all__ = [
    "AdminStandby",
    "AdminDumpCore",
    "AdminTrigger",
    "AdminUpdateConfig",
    "AdminRename",
    "AdminListLong",
    "AdminConsole",
    "AdminCreate",
    "AdminDestroy",
    "AdminDmesg",
    "AdminDrivers",
    "AdminExec",
    "AdminInfo",
    "AdminInject",
    "AdminList",
    "AdminPause",
    "AdminRequest",
    "AdminRestart",
    "AdminShutdown",
    "AdminUnpause",
    "Answer",
    "AdminReply",
    "Part",
]


class AdminList(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All domains. Value: a list of `DomainInfo`."""


class AdminInfo(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One domain (value: `DomainInfo`), or without a name host and hypervisor (value: a map)."""

    name: Name | None = None


class AdminCreate(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Create and start a guest, to stand still at once if `paused`. Every path in it is absolute. Value: its domid."""

    config: GuestConfig
    paused: bool = False


class AdminShutdown(Struct, tag=0x04, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask a guest to power off or reboot; with `wait_s`, answer when it has, ETIMEDOUT if it has not by then."""

    name: Name
    reason: ShutdownReason = ShutdownReason.POWEROFF
    wait_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class AdminDestroy(Struct, tag=0x05, array_like=True, frozen=True, forbid_unknown_fields=True):
    """End a guest at once."""

    name: Name


class AdminExec(Struct, tag=0x06, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Run a command in a guest. `ExecStart` follows on the same connection after the OK.

    Errors: ENOENT no such guest, EHOSTDOWN it is not running.
    """

    name: Name


class AdminDmesg(Struct, tag=0x07, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The last 256 KiB of a guest's console, or without a name of the hypervisor's own log, in `Part`s."""

    name: Name | None = None


class AdminDrivers(Struct, tag=0x08, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All driver domains. Value: a list of `DriverInfo`."""


class AdminInject(Struct, tag=0x09, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Make a driver fail on purpose (`SysctlInject`)."""

    driver: Name
    what: Annotated[str, Meta(max_length=64)]
    count: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)] = 1


class AdminPause(Struct, tag=0x10, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Have a guest stand still; answered when it does, also where it did already."""

    name: Name


class AdminUnpause(Struct, tag=0x11, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Have a guest go on that was paused; EBUSY where a driver of it is given up, for which it stays paused."""

    name: Name


class AdminRestart(Struct, tag=0x12, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Replace a driver's incarnation, or start anew one that was given up (`SysctlRestart`)."""

    driver: Name


class AdminConsole(Struct, tag=0x14, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Watch a guest's console, and type. The fields are those of `ConsoleAttach`; a return names the `generation` that
    it left. Value: the guest's generation.

    Errors: ENOENT no such guest, EHOSTDOWN it is not running, ESTALE another generation runs, EAGAIN no console driver
    serves now.
    """

    name: Name
    tail: Annotated[int, Meta(ge=0, le=262144)] = 0
    keyboard: U63 = 0
    at: U63 | None = None
    generation: Generation | None = None
    steal: bool = False
    watch: bool = False


class AdminListLong(Struct, tag=0x15, array_like=True, frozen=True, forbid_unknown_fields=True):
    """As `AdminList`, and each guest with its configuration."""


class AdminRename(Struct, tag=0x16, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Give a guest another name (`DomctlRename`)."""

    name: Name
    new: Name


class AdminUpdateConfig(Struct, tag=0x17, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Have a guest be something else from its next start on (`DomctlUpdateConfig`). Every path is absolute."""

    name: Name
    config: GuestConfig


class AdminTrigger(Struct, tag=0x18, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Press a key or a button of a guest's (`DomctlTrigger`)."""

    name: Name
    trigger: Trigger
    key: Annotated[str, Meta(pattern=r"^[a-z0-9]?\Z")] = ""


class AdminDumpCore(Struct, tag=0x19, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Write a core of a guest's memory into the run's folder. Value: a map `{path, bytes}` (`DomctlDumpCore`)."""

    name: Name


class AdminStandby(Struct, tag=0x1A, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keep a standby of a driver, or keep none (`SysctlStandby`)."""

    driver: Name
    wanted: bool


class Part(Struct, tag=0x20, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A piece of a long answer."""

    data: Annotated[bytes, Meta(max_length=PART_BYTES)]


class Answer(Struct, tag=0x21, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How the request ended. `why` is one line for a person."""

    status: Status
    value: Any = None
    why: str = ""


AdminRequest = (
    AdminList
    | AdminInfo
    | AdminCreate
    | AdminShutdown
    | AdminDestroy
    | AdminExec
    | AdminDmesg
    | AdminDrivers
    | AdminInject
    | AdminPause
    | AdminUnpause
    | AdminRestart
    | AdminConsole
    | AdminStandby
    | AdminDumpCore
    | AdminTrigger
    | AdminUpdateConfig
    | AdminRename
    | AdminListLong
)
AdminReply = Part | Answer
