"""What the hypervisor hands a role when its incarnation starts: a packed struct, beside named descriptors.

Every role has the descriptors `control` (its control channel) and `log` (a pipe to the log keeper).
"""

from msgspec import Struct

from kernel.abi.guest_config import GuestConfig
from kernel.abi.ids import VbdHandle

__all__ = ["Dom0Start", "DriverStart", "GuestStart", "GuestVbd", "NativeStart"]


class Dom0Start(Struct, frozen=True, forbid_unknown_fields=True):
    """Dom0. Further descriptor: `keeper`, a message channel to the log keeper."""

    run: str
    version: str


class DriverStart(Struct, frozen=True, forbid_unknown_fields=True):
    """A driver domain. `faults` allows `Misbehave`. `options` are the manifest's own words for this driver. `program`:
    one that it may run, by the path that it has in the jail; "" for none."""

    faults: bool
    options: dict[str, str | int | float | bool] = {}
    program: str = ""


class GuestVbd(Struct, frozen=True, forbid_unknown_fields=True):
    """A vbd as its frontend must know it. The disk has `sectors` of 512 bytes."""

    handle: VbdHandle
    vdev: str
    sectors: int
    read_only: bool


class NativeStart(Struct, frozen=True, forbid_unknown_fields=True):
    """A native guest. Further descriptors: `program` (its file, open for reading), `console` (a pipe to the log
    keeper)."""

    config: GuestConfig
    vbds: list[GuestVbd]


class GuestStart(Struct, frozen=True, forbid_unknown_fields=True):
    """A PV guest. Further descriptors: `kernel`, `ramdisk`, `console` (a pipe to the log keeper), and `folder` where
    that is not empty.

    The operating system runs on `cpu` alone, and its actor on the others where there are any. `lpj` is this
    host's loops per jiffy, 0 for unknown.
    """

    config: GuestConfig
    vbds: list[GuestVbd]
    cpu: int
    lpj: int
    folder: str = ""
    """In the reduced jail the host's path where the guest may write; else it has mounts of its own."""
