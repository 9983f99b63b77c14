"""User-Mode Linux as a guest: how it is started, and what its end means. Decides only; the reaper acts.

The boot line is what makes a guest's agent answer 40 ms after exec instead of 1.3 s. Each word's saving is in
`docs/guest-boot.md`.
"""

import ctypes
import enum
import re
import signal

from msgspec import Struct

from kernel.abi.guest_config import MIN_MEMORY_MIB
from kernel.abi.status import Refused, Status

__all__ = ["ExitReason", "GuestExit", "UmlDisk", "UmlSpec", "classify_exit", "command_line", "prepare_to_exec"]

VIRTIO_ID_BLOCK = 2
MAX_SOCKET_PATH = 107
"""Bytes of a path that a sockaddr_un holds."""

MAX_LINE = 4096
"""COMMAND_LINE_SIZE of User-Mode Linux (`arch/um/include/asm/setup.h`). It cuts what is longer without a word."""

ESCAPES = ("init_hostfs",)
"""Left out whatever is asked: hostfs reads and writes the host's files, and its own confinement can be left by `..`."""

SLOW_INITCALLS = (
    "raid6_select_algo", "calibrate_xor_blocks", "init_btrfs_fs", "init_jfs_fs", "init_zswap", "ssl_init",
    "slab_sysfs_init", "rng_init", "mmapper_init", "ubd_init", "ubd0_init", "ubd_driver_init", "ubd_mc_init",
    "atkbd_init", "psmouse_init", "hid_init", "hid_generic_init", "a4_driver_init", "belkin_driver_init",
    "ch_driver_init", "cp_driver_init", "ez_driver_init", "ite_driver_init", "ks_driver_init", "ms_driver_init",
    "mr_driver_init", "redragon_driver_init",
)  # fmt: skip
"""Benchmarks of RAID code, and devices that a guest here does not have. This kernel starts /sbin/hotplug, which is not
there, for each device and driver it registers, and each try costs a process on the host: ssl_init alone makes 64."""

WORDS = ("con=null", "rw", "noreboot", "pty.legacy_count=0", "quiet")
"""noreboot: a guest that reboots ends, and its supervisor starts it anew. quiet leaves the console its last words."""


class UmlDisk(Struct, frozen=True):
    """A vhost-user block device. Disks appear as vda, vdb, … in the order of `index`."""

    socket_path: str
    index: int


class UmlSpec(Struct, frozen=True, kw_only=True):
    """One boot. Descriptors are numbers in the new process; `console_fd` and `agent_fd` are stream sockets.

    `lpj`: this host's loops per jiffy, 0 for unknown. `fast=False` leaves in btrfs, JFS and RAID 6: 1.2 s more.
    `extra`: further words of the kernel's line, such as `tv.mount=/dev/vda:/mnt:ext4`; `root` a disk to switch to.
    """

    memory_mib: int
    initrd: str
    console_fd: int
    agent_fd: int
    uml_dir: str
    umid: str
    hostname: str = ""
    root: str = ""
    lpj: int = 0
    disks: tuple[UmlDisk, ...] = ()
    extra: tuple[str, ...] = ()
    fast: bool = True


def command_line(spec: UmlSpec) -> list[str]:
    """`argv` for linux.uml. Refuses EINVAL what could not boot; the user who gave it is to blame."""
    _check(spec)
    blocked = ESCAPES + (SLOW_INITCALLS if spec.fast else ())
    words = [
        "linux.uml",
        f"mem={spec.memory_mib}M",
        f"initrd={spec.initrd}",
        f"uml_dir={spec.uml_dir.rstrip('/')}/",
        f"umid={spec.umid}",
        *WORDS,
        f"con0=fd:{spec.console_fd}",
        f"con1=fd:{spec.agent_fd}",
        f"initcall_blacklist={','.join(blocked)}",
        *(f"virtio_uml.device={disk.socket_path}:{VIRTIO_ID_BLOCK}:{disk.index}" for disk in _in_order(spec.disks)),
    ]
    words += [f"lpj={spec.lpj}"] if spec.lpj else []
    words += [f"tv.hostname={spec.hostname}"] if spec.hostname else []
    words += [f"tv.root={spec.root}"] if spec.root else []
    words += spec.extra
    length = len(" ".join(words[1:]).encode())
    if length >= MAX_LINE:
        raise Refused(Status.EINVAL, f"extra: the kernel's line has {length} bytes, at most {MAX_LINE - 1} fit")
    return words


def _in_order(disks: tuple[UmlDisk, ...]) -> list[UmlDisk]:
    return sorted(disks, key=lambda disk: disk.index)


def _check(spec: UmlSpec) -> None:
    if spec.memory_mib < MIN_MEMORY_MIB:
        raise Refused(Status.EINVAL, f"memory = {spec.memory_mib}: a guest needs at least {MIN_MEMORY_MIB} (MiB)")
    if len({disk.index for disk in spec.disks}) != len(spec.disks):
        raise Refused(Status.EINVAL, "disk: two disks have the same place")
    for disk in spec.disks:
        if len(disk.socket_path.encode()) > MAX_SOCKET_PATH or re.search(r"[\s:]", disk.socket_path):
            why = f"at most {MAX_SOCKET_PATH} bytes without spaces and colons"
            raise Refused(Status.EINVAL, f"disk: the socket's path {disk.socket_path!r} must have {why}")
    for word in (*spec.extra, spec.initrd, spec.uml_dir, spec.umid, spec.hostname, spec.root):
        if re.search(r"[\s\0]", word):
            raise Refused(Status.EINVAL, f"{word!r}: a word of the kernel's line has no spaces in it")


_ADDR_NO_RANDOMIZE = 0x0040000
_personality = ctypes.CDLL(None, use_errno=True).personality


def prepare_to_exec() -> None:
    """In the process that is about to exec linux.uml: fixed addresses (personality(2)).

    Without it a gap of random size eats up to 680 MB of the guest's memory. Raises OSError where it is forbidden.
    """
    if _personality(_ADDR_NO_RANDOMIZE) == -1:
        raise OSError(ctypes.get_errno(), "personality(ADDR_NO_RANDOMIZE)")


class ExitReason(enum.StrEnum):
    """How a guest ended. FAILED_EARLY: its kernel never ran; KILLED: from outside, by a signal."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    CRASH = "crash"
    FAILED_EARLY = "failed-early"
    KILLED = "killed"


class GuestExit(Struct, frozen=True):
    """The end of a guest; `detail` is the line of the console that tells most, for a person."""

    reason: ExitReason
    status: int
    detail: str


PANIC_STATUS = 134
"""128 + SIGABRT: what linux.uml exits with when its kernel panics."""

_PANIC = "Kernel panic - not syncing"
_LAST_WORDS = "reboot: "
_REBOOT = "reboot: Restarting system"


def classify_exit(status: int, console: bytes) -> GuestExit:
    """What an end means. `status` as `os.waitstatus_to_exitcode` gives it; `console`: its last bytes are enough.

    A reboot and a power-off both exit with 0 under `noreboot`; the kernel's last words tell them apart. Once it has
    said them its work is done: a late signal makes its exit fail now and then.
    """
    lines = [line.strip() for line in console.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if status == 0:
        told = next((line for line in reversed(lines) if line.startswith(_LAST_WORDS)), last)
        return GuestExit(_asked_for(told), status, told)
    if last.startswith(_LAST_WORDS):
        return GuestExit(_asked_for(last), status, f"{last} (exit status {status})")
    if status in (PANIC_STATUS, -signal.SIGABRT):
        panic = next((line for line in reversed(lines) if _PANIC in line), last)
        return GuestExit(ExitReason.CRASH, status, panic)
    if status < 0:
        return GuestExit(ExitReason.KILLED, status, f"killed by signal {-status}")
    return GuestExit(ExitReason.FAILED_EARLY, status, last)


def _asked_for(last_words: str) -> ExitReason:
    return ExitReason.REBOOT if last_words == _REBOOT else ExitReason.POWEROFF
