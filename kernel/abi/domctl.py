"""Dom0 → hypervisor: the control of other domains and of the host, Xen's domctl and sysctl."""

import enum
from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.guest_config import GuestConfig, ShutdownReason
from kernel.abi.ids import Domain, Name, Request

__all__ = [
    "DomctlCreate",
    "DomctlDestroy",
    "DomctlDumpCore",
    "DomctlGetInfo",
    "DomctlPause",
    "DomctlRename",
    "DomctlShutdown",
    "DomctlTrigger",
    "DomctlUnpause",
    "DomctlUpdateConfig",
    "SysctlDrivers",
    "SysctlInfo",
    "SysctlInject",
    "SysctlRestart",
    "SysctlStandby",
    "Trigger",
]


class Trigger(enum.StrEnum):
    """SYSRQ: a key of Linux's Magic SysRq. RESET: the button."""

    SYSRQ = "sysrq"
    RESET = "reset"


class DomctlCreate(Struct, tag=0x30, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Create a guest and start it; with `paused` it stands still for Dom0 as soon as its kernel can.

    Caller:  Dom0.
    Promise: an OK carries the new domid; anything else has left nothing behind.
    Errors:  EEXIST the name is taken, ENOENT a file or driver is missing, EBUSY another holds an image, EINVAL the
             configuration cannot be, ENOSPC a driver serves all the disks that it can, ENOMEM. The reply's `why` is one
             line for the administrator.
    """

    request: Request
    config: GuestConfig
    paused: bool = False


class DomctlDestroy(Struct, tag=0x31, array_like=True, frozen=True, forbid_unknown_fields=True):
    """End a guest at once, as pulling its plug does.

    Caller:  Dom0.
    Promise: OK when every process of it is gone.
    Errors:  ENOENT no such guest, EPERM it is Dom0 or a driver domain.
    """

    request: Request
    domid: Domain


class DomctlShutdown(Struct, tag=0x32, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask a guest's operating system to power off or reboot.

    Caller:  Dom0.
    Promise: OK when it was asked; `DomctlGetInfo` tells when it has.
    Errors:  ENOENT no such guest, EPERM it is no guest.
    """

    request: Request
    domid: Domain
    reason: ShutdownReason


class DomctlGetInfo(Struct, tag=0x33, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask about one domain, or about all.

    Caller:  Dom0.
    Promise: the value is a list of `DomainInfo`, by domid; with `long` each guest's has its `config`.
    Errors:  ENOENT no such domain.
    """

    request: Request
    domid: Domain | None = None
    long: bool = False


class DomctlPause(Struct, tag=0x34, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Have a guest's operating system stand still (`XEN_DOMCTL_pausedomain`, though it is not counted).

    Caller:  Dom0.
    Promise: OK when it stands still, also where it did already.
    Errors:  ENOENT no such guest, EPERM it is no guest, EHOSTDOWN it is not running, EIO or ETIMEDOUT it goes on.
    """

    request: Request
    domid: Domain


class DomctlUnpause(Struct, tag=0x35, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Take `DomctlPause` back.

    Caller:  Dom0.
    Promise: OK when it goes on, also where it had not been paused.
    Errors:  ENOENT no such guest, EPERM it is no guest, EHOSTDOWN it is not running, EIO or ETIMEDOUT it stands still,
             EBUSY a driver of it is given up: it stays paused for that.
    """

    request: Request
    domid: Domain


class DomctlRename(Struct, tag=0x36, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Give a guest another name. It keeps its domid, its incarnation and its console's past.

    Caller:  Dom0.
    Promise: OK when it has that name for everybody; in its own eyes (its hostname) from its next start on.
    Errors:  ENOENT no such guest, EPERM it is no guest, EEXIST the name is taken.
    """

    request: Request
    domid: Domain
    name: Name


class DomctlUpdateConfig(Struct, tag=0x37, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Have a guest be what `config` says from its next start on, as `xl config-update`.

    Caller:  Dom0.
    Promise: what runs is not touched. Name, type and disks stay.
    Errors:  ENOENT no such guest, EPERM it is no guest, EINVAL the configuration cannot be, or would change what stays.
    """

    request: Request
    domid: Domain
    config: GuestConfig


class DomctlTrigger(Struct, tag=0x3C, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Press a key or a button of a guest's machine (`XEN_DOMCTL_sendtrigger`, and Xen's control/sysrq).

    Caller:  Dom0.
    Promise: SYSRQ: OK when its kernel was told `key`. RESET: OK when its incarnation was ended and another runs,
             whatever its `on_*` settings say.
    Errors:  ENOENT no such guest, EPERM it is no guest, EHOSTDOWN it is not running, EINVAL a native guest has no such
             key, EIO or ETIMEDOUT its kernel was not told.
    """

    request: Request
    domid: Domain
    trigger: Trigger
    key: Annotated[str, Meta(pattern=r"^[a-z0-9]?\Z")] = ""


class DomctlDumpCore(Struct, tag=0x3D, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Write a guest's memory into the run's folder, as an ELF core. The guest goes on meanwhile, unless it is paused.

    Caller:  Dom0.
    Promise: the value is a map `{path, bytes}`; no other than whole cores are left there.
    Errors:  ENOENT no such guest, EPERM it is no guest, EHOSTDOWN it is not running, EINVAL a native one, EBUSY a dump
             of it is under way, EIO or ETIMEDOUT it could not be written.
    """

    request: Request
    domid: Domain


class SysctlInfo(Struct, tag=0x38, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask about the host and the hypervisor (`XEN_SYSCTL_physinfo`).

    Caller:  Dom0.
    Promise: the value is a map of names and values, as `tv info` prints them.
    """

    request: Request


class SysctlDrivers(Struct, tag=0x39, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask about the driver domains and what they serve.

    Caller:  Dom0.
    Promise: the value is a list of `DriverInfo`.
    """

    request: Request


class SysctlInject(Struct, tag=0x3A, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Make a driver fail in a chosen way: at a fault point of its loop, or by misbehaving at its next turn.

    Caller:  Dom0.
    Promise: an OK says that the order was sent, not that it has struck.
    Errors:  ENOENT no such driver, EPERM the manifest has `faults = false`, EINVAL no such point or act.
    """

    request: Request
    driver: Name
    what: Annotated[str, Meta(max_length=64)]
    count: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)] = 1


class SysctlRestart(Struct, tag=0x3B, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Replace the incarnation of a driver that serves, or start one that was given up. Its deaths are forgotten.

    Caller:  Dom0.
    Promise: OK when another incarnation serves; guests that stood still for want of it are going on.
    Errors:  ENOENT no such driver, EIO it was given up meanwhile, ETIMEDOUT no other serves yet.
    """

    request: Request
    driver: Name


class SysctlStandby(Struct, tag=0x3F, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keep a standby of a driver from now on, or keep none.

    Caller:  Dom0.
    Promise: OK when it is so: a standby runs, or has ended. The incarnation that serves is not touched.
    Errors:  ENOENT no such driver, EIO the driver is given up, ETIMEDOUT it is not so yet.
    """

    request: Request
    driver: Name
    wanted: bool
