"""Dom0 → hypervisor: the control of other domains and of the host, Xen's domctl and sysctl."""

from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.guest_config import GuestConfig, ShutdownReason
from kernel.abi.ids import Domain, Name, Request

__all__ = [
    "DomctlCreate",
    "DomctlDestroy",
    "DomctlGetInfo",
    "DomctlPause",
    "DomctlShutdown",
    "DomctlUnpause",
    "SysctlDrivers",
    "SysctlInfo",
    "SysctlInject",
    "SysctlRestart",
]


class DomctlCreate(Struct, tag=0x30, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Create a guest and start it.

    Caller:  Dom0.
    Promise: an OK carries the new domid; anything else has left nothing behind.
    Errors:  EEXIST the name is taken, ENOENT a file or driver is missing, EBUSY another holds an image, EINVAL the
             configuration cannot be, ENOSPC a driver serves all the disks that it can, ENOMEM. The reply's `why` is one
             line for the administrator.
    """

    request: Request
    config: GuestConfig


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
    Promise: the value is a list of `DomainInfo`, by domid.
    Errors:  ENOENT no such domain.
    """

    request: Request
    domid: Domain | None = None


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
