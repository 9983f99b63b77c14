"""Looks at what the Linux kernel has: each really tried, in a child where it could not be taken back."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from kernel.doctor.attempt import in_child, libc_call, system_call
from kernel.doctor.finding import Answer, State

__all__ = [
    "architecture", "clone3", "cpus", "descriptors", "kernel_release", "kvm", "landlock", "memfd",
    "namespace", "ofd_locks", "pidfd", "python", "seccomp", "shared_memory", "user_namespace",
]

NOBODY = 65534

CLONE_NEWUSER = 0x1000_0000
NAMESPACES = {"pid": 0x2000_0000, "mount": 0x0002_0000, "net": 0x4000_0000, "ipc": 0x0800_0000}
"""Flags of unshare(2), from `linux/sched.h`."""

MIN_KERNEL = (5, 3)
"""The first with pidfd_open(2). Later features are looked at one by one."""

MIN_DESCRIPTORS = 4096
"""A hypervisor with 20 guests of two disks holds about 600; the rest is for tests that start many."""

MIN_SHARED_MEMORY_MIB = 256
"""Three guests of the default size outside the full jail, which has a /dev/shm of its own for each guest."""


def architecture() -> Answer:
    machine = platform.machine()
    known = sys.platform == "linux" and machine == "x86_64"
    return Answer(State.OK if known else State.MISSING, f"{platform.system()} {machine}")


def kernel_release() -> Answer:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    return Answer(State.OK if numbers >= MIN_KERNEL else State.MISSING, release)


def python() -> Answer:
    return Answer(State.OK, f"{platform.python_version()} {sys.executable}")


def namespace(kind: str) -> Callable[[], Answer]:
    """A look at one kind of namespace, made as the hypervisor would: by an ordinary user inside a user namespace."""

    def look() -> Answer:
        try:
            return Answer(State.OK, in_child(lambda: _enter_namespace(kind)))
        except OSError as error:
            mend = "" if os.geteuid() == 0 else _user_namespace_mend()
            return Answer(State.MISSING, f"refused: {error.strerror}", mend)

    return look


def _enter_namespace(kind: str) -> str:
    if os.geteuid() != 0:
        _enter_user_namespace()
    libc_call("unshare", NAMESPACES[kind])
    if kind == "pid":
        return in_child(lambda: f"made; its first process is {os.getpid()}")
    if kind == "mount":
        private_recursive = 0x0004_0000 | 0x4000
        libc_call("mount", b"none", b"/", None, ctypes.c_ulong(private_recursive), None)
        libc_call("mount", b"none", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)
        return "made, and a tmpfs mounted in it"
    return "made"


def user_namespace() -> Answer:
    """Whether an ordinary user can make one and have its own id in it."""
    try:
        return Answer(State.OK, in_child(_enter_user_namespace_as_nobody))
    except OSError as error:
        return Answer(State.MISSING, f"refused: {error.strerror}", _user_namespace_mend())


def _enter_user_namespace_as_nobody() -> str:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        pr_set_dumpable = 4  # cleared by setresuid, and needed to write the map
        libc_call("prctl", pr_set_dumpable, 1, 0, 0, 0)
    _enter_user_namespace()
    return f"made by uid {os.getuid()}"


def _enter_user_namespace() -> None:
    uid = os.getuid()
    libc_call("unshare", CLONE_NEWUSER)
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")


def _user_namespace_mend() -> str:
    """The setting that forbids them: Debian's, Ubuntu's, the kernel's own; else a container's filter."""
    for setting, forbids, allows in (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "10000"),
    ):
        try:
            value = Path("/proc/sys", *setting.split(".")).read_text().strip()
        except OSError:
            continue
        if value == forbids:
            return f"sudo sysctl -w {setting}={allows}"
    return "in a container, let it make namespaces: docker run --security-opt seccomp=unconfined …"


def clone3() -> Answer:
    """Asked for with no arguments it answers EINVAL where it is, ENOSYS where a container's filter hides it."""
    sys_clone3 = 435
    try:
        system_call(sys_clone3, None, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return Answer(State.OK, "there")
        return Answer(State.MISSING, f"refused: {error.strerror}")
    return Answer(State.OK, "there")


def pidfd() -> Answer:
    descriptor = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(descriptor, 0)
    finally:
        os.close(descriptor)
    return Answer(State.OK, "opened, and signalled through")


def seccomp() -> Answer:
    """A filter that forbids getppid, installed in a child, which then asks for it."""
    return Answer(State.OK, in_child(_install_filter))


def _install_filter() -> str:
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    number_offset, sys_getppid, allow, refuse = 0, 110, 0x7FFF_0000, 0x0005_0000 | errno.EPERM
    instructions = (
        (load, 0, 0, number_offset), (jump_if_equal, 0, 1, sys_getppid), (answer, 0, 0, refuse), (answer, 0, 0, allow),
    )  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in instructions))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code)))
    set_no_new_privs, set_seccomp, mode_filter = 38, 22, 2
    libc_call("prctl", set_no_new_privs, 1, 0, 0, 0)
    libc_call("prctl", set_seccomp, mode_filter, program, 0, 0)
    try:
        system_call(sys_getppid)
    except PermissionError:
        return "filter installed, and it refuses"
    raise OSError(errno.EINVAL, "a filter was installed and refuses nothing")


def landlock() -> Answer:
    sys_landlock_create_ruleset, version = 444, 1
    abi = system_call(sys_landlock_create_ruleset, None, 0, version)
    scopes_signals = 6
    return Answer(State.OK, f"ABI {abi}" if abi >= scopes_signals else f"ABI {abi}, which does not scope signals")


def memfd() -> Answer:
    """A sealed grant: its owner goes on writing through the map made before the seal, nobody can make another."""
    seal_seal, seal_shrink, seal_grow, seal_future_write = 1, 2, 4, 0x10
    descriptor = os.memfd_create("doctor", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)
        with mmap.mmap(descriptor, mmap.PAGESIZE) as owners:
            seals = seal_seal | seal_shrink | seal_grow | seal_future_write
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            owners[0] = 1
            try:
                mmap.mmap(descriptor, mmap.PAGESIZE).close()
            except PermissionError:
                return Answer(State.OK, "sealed against shrinking, growing and future writing")
    finally:
        os.close(descriptor)
    return Answer(State.MISSING, "sealed memory can still be mapped for writing")


def ofd_locks() -> Answer:
    """Two open file descriptions of one file, in one process: the second must be refused."""
    set_lock, write_lock = 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    first = os.memfd_create("doctor", os.MFD_CLOEXEC)
    second = os.open(f"/proc/self/fd/{first}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(first, set_lock, write_lock)
        fcntl.fcntl(second, set_lock, write_lock)
    except BlockingIOError:
        return Answer(State.OK, "a second writer is refused")
    finally:
        os.close(first)
        os.close(second)
    return Answer(State.MISSING, "a second writer is not refused")


def kvm() -> Answer:
    get_api_version = 0xAE00
    descriptor = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        version = fcntl.ioctl(descriptor, get_api_version)
    finally:
        os.close(descriptor)
    return Answer(State.OK, f"/dev/kvm opens, API {version}; whether it runs 64-bit guests is probed when one starts")


def shared_memory() -> Answer:
    counts = os.statvfs("/dev/shm")
    size_mib, free_mib = (blocks * counts.f_frsize >> 20 for blocks in (counts.f_blocks, counts.f_bavail))
    state = State.OK if free_mib >= MIN_SHARED_MEMORY_MIB else State.DEGRADED
    return Answer(state, f"/dev/shm has {size_mib} MiB, {free_mib} free")


def descriptors() -> Answer:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= MIN_DESCRIPTORS
    return Answer(State.OK if enough else State.DEGRADED, f"{soft} open files, {hard} at most")


def cpus() -> Answer:
    count = len(os.sched_getaffinity(0))
    return Answer(State.OK if count > 1 else State.DEGRADED, f"{count} usable of {os.cpu_count()}")
