"""What a guest is: the fields of its TOML, with `xl.cfg`'s names where they fit, and what is told about domains."""

import enum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from kernel.abi.ids import DomId, Generation, Name, Path, VbdHandle

__all__ = [
    "MIB",
    "MIN_MEMORY_MIB",
    "ONLY_FOR",
    "Action",
    "Cpus",
    "DiskConfig",
    "DomainInfo",
    "DomainState",
    "DriverInfo",
    "GuestConfig",
    "ImageFormat",
    "ShutdownReason",
    "VbdInfo",
]

MIB = 1 << 20
"""Bytes. Memory is told in MiB, here and in the boot manifest."""

MIN_MEMORY_MIB = 24
"""Measured: User-Mode Linux boots in 21 MiB each time, in 20 three times in five, in 16 never."""


Cpus = Annotated[str, Meta(max_length=256, pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*\Z")]
"""A list of CPUs and ranges, as `xl.cfg` has it: "0,2-3". Linux knows 8,192."""


Argument = Annotated[str, Meta(max_length=1024, pattern=r"^[^\0]*\Z")]


class ShutdownReason(enum.IntEnum):
    """Why a domain ends (`xen/include/public/sched.h`, SHUTDOWN_*)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4


class Action(enum.StrEnum):
    """What follows the end of a guest (`xl.cfg`: on_poweroff, on_reboot, on_crash)."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    RENAME_RESTART = "rename-restart"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"

    @property
    def dumps(self) -> bool:
        """A core of the guest's memory is written first."""
        return self in (Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART)


ImageFormat = Literal["raw", "qcow2"]


class DiskConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """One virtual block device: `target`, an image or a block device of the host's; `vdev` as the guest names it;
    `access`; `backend`, a driver domain that serves this `format`; `backing`, the raw image or block device on which a
    qcow2 image stands, which is only read: the name that the image itself has for it opens nothing."""

    target: Path
    vdev: Annotated[str, Meta(pattern=r"^vd[a-p]\Z")]
    access: Literal["rw", "ro"] = "rw"
    backend: Name = "blkback"
    format: ImageFormat = "raw"
    backing: Path | None = None


class GuestConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """A guest, as `tv create` reads it from TOML. Memory in MiB. `cpus` pins it; without it the hypervisor chooses one
    for a PV guest, and a native one runs anywhere.

    `type` is "pv", Linux, or "native", a Python program. `kernel` and `ramdisk` name files of a PV guest; the boot
    manifest has the defaults. `root` is a vbd that the initramfs mounts and switches to; without it the guest stays in
    its initramfs. `program` is a native guest's file, `args` its arguments, `peers` the guests whose present
    incarnation it may ask for by name (`EvtchnResolve`). `ONLY_FOR` says which field is whose.
    """

    name: Name
    memory: Annotated[int, Meta(ge=MIN_MEMORY_MIB, le=65536)] = 64
    type: Literal["pv", "native"] = "pv"
    vcpus: Annotated[int, Meta(ge=1, le=1)] = 1
    cpus: Cpus | None = None
    kernel: Path | None = None
    ramdisk: Path | None = None
    root: Annotated[str, Meta(pattern=r"^/dev/vd[a-p]\Z")] | None = None
    extra: Annotated[str, Meta(max_length=1024, pattern=r"^[^\0]*\Z")] = ""
    program: Path | None = None
    args: Annotated[list[Argument], Meta(max_length=64)] = []
    peers: Annotated[list[Name], Meta(max_length=64)] = []
    disk: Annotated[list[DiskConfig], Meta(max_length=16)] = []
    on_poweroff: Action = Action.DESTROY
    on_reboot: Action = Action.RESTART
    on_crash: Action = Action.DESTROY

    def follows(self, reason: ShutdownReason) -> Action:
        """What is to follow an end for this reason."""
        endings = {ShutdownReason.POWEROFF: self.on_poweroff, ShutdownReason.REBOOT: self.on_reboot}
        return endings.get(reason, self.on_crash)


ONLY_FOR = {
    "kernel": "pv",
    "ramdisk": "pv",
    "root": "pv",
    "extra": "pv",
    "program": "native",
    "args": "native",
    "peers": "native",
}
"""Fields of `GuestConfig` that mean something for one type of guest alone. Another's are refused."""


class DomainState(enum.StrEnum):
    """Where a domain is in its life. `xl list` shows r b p s c d of it."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"
    GIVEN_UP = "given-up"
    HELD = "held"
    DEAD = "dead"


class VbdInfo(Struct, frozen=True):
    """One vbd as `tv info` tells it. `outages_ms`: for each time its backend was lost, how long until its
    successor was active."""

    handle: VbdHandle
    vdev: str
    target: str
    access: str
    sectors: int
    backend: str
    guest: str
    state: str


class DomainInfo(Struct, frozen=True):
    """One domain as `tv list` and `tv info` tell it. Times in seconds, memory in MiB. `pid` is in the host's
    namespace. `paused_for`: for whom it stands still, or is about to: dom0, where the administrator had it paused, and
    each driver of it that is given up. `last_end`: how its last incarnation ended, in words. `config`: what a guest is
    made from at its next start, where that was asked for."""

    domid: DomId
    name: str
    kind: str
    state: DomainState
    generation: Generation
    pid: int | None
    memory: int
    vcpus: int
    cpus: list[int]
    cpu_time_s: float
    uptime_s: float
    jail: str
    restarts: int
    vbds: list[VbdInfo] = []
    paused_for: list[Name] = []
    last_end: str = ""
    config: GuestConfig | None = None


class DriverInfo(Struct, frozen=True):
    """One driver domain: its active incarnation, its standby, how often and why it was restarted, what it serves.
    `device`: "vbd" or "console"."""

    name: str
    domid: DomId
    state: DomainState
    generation: Generation
    pid: int | None
    standby_generation: Generation | None
    standby_pid: int | None
    restarts: int
    last_death: str
    jail: str
    vbds: list[VbdInfo]
    device: str = "vbd"
