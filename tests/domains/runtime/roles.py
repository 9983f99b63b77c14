"""What the tests run inside a jail: each probe tries what it may not do, and reports what came of it."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from typing import NoReturn

import trio

from kernel.abi.spawn import Identity

_libc = ctypes.CDLL(None, use_errno=True)

SYSCALLS: dict[str, tuple] = {
    "ptrace": (101, 16, 1, 0, 0), "mount": (165, b"x", b"/", b"tmpfs", 0, 0), "umount2": (166, b"/", 2),
    "pivot_root": (155, b"/", b"/"), "chroot": (161, b"/"), "unshare": (272, 0x1000_0000), "setns": (308, 0, 0),
    "clone newuser": (56, 0x1000_0000 | 17, 0, 0, 0, 0), "clone3": (435, 0, 0), "bpf": (321, 0, 0, 0),
    "init_module": (175, 0, 0, b""), "kexec_load": (246, 0, 0, 0, 0), "keyctl": (250, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 1, 0), "io_setup": (206, 1, 0), "open_by_handle_at": (304, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0), "userfaultfd": (323, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "a call not yet invented": (999,), "fork": (57,), "execve": (59, b"/bin/true", 0, 0),
    "execveat": (322, -1, b"", 0, 0, 0),
}  # fmt: skip


def run(role: str, identity: Identity, descriptors: dict[str, int], config: bytes, jail: str) -> NoReturn:
    """The entry: run the probe that the config names, report, and wait to be killed."""
    probe: Callable[[dict[str, int]], dict] = globals()[config.decode()]
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptors["control"], json.dumps({"jail": jail, **probe(descriptors)}).encode())
    trio.run(trio.sleep_forever)
    os._exit(0)


def rehearse(role: str, config: bytes) -> None:
    """There is nothing to rehearse for a probe."""


def attempt(act: Callable[..., object], *arguments: object) -> str:
    """`ok`, or the name of the errno."""
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def call(number: int, *arguments: int | bytes) -> str:
    """A system call by number."""
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = _libc.syscall(ctypes.c_long(number), *longs)
    if number in (56, 57) and result == 0:
        os._exit(0)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"


def who(_descriptors: dict[str, int]) -> dict:
    """Who we are."""
    return {"pid": os.getpid(), "ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups()}


def calls(_descriptors: dict[str, int]) -> dict:
    """Each forbidden system call."""
    return {name: call(*arguments) for name, arguments in SYSCALLS.items()}


def sockets(_descriptors: dict[str, int]) -> dict:
    """Each kind of socket."""
    tries = {
        "inet": lambda: socket.socket(socket.AF_INET),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "unix": lambda: socket.socket(socket.AF_UNIX), "pair": lambda: socket.socketpair(socket.AF_UNIX),
        "inet pair": lambda: socket.socketpair(socket.AF_INET), "packet": lambda: socket.socket(socket.AF_PACKET),
    }  # fmt: skip
    return {name: attempt(act) for name, act in tries.items()}


def files(_descriptors: dict[str, int]) -> dict:
    """Reading the host's files and writing anywhere."""
    read = ("/etc/passwd", "/root", "/home", "/proc/1/status", "/proc/self/status", "/sys", "/.host", "/.host/proc",
            "/bin/sh", "/dev/vda", "/dev/mem")  # fmt: skip
    write = ("/x", "/tmp/x", "/run/x", "/dev/shm/x", "/dev/x", "/usr/lib/x", os.__file__)
    return {
        "read": {path: attempt(os.open, path, os.O_RDONLY) for path in read},
        "write": {path: attempt(os.open, path, os.O_WRONLY | os.O_CREAT) for path in write},
    }


def writes_in_folder(descriptors: dict[str, int]) -> dict:
    """A file in the folder that a guest is given, and one beside it."""
    inside = os.readlink(f"/proc/self/fd/{descriptors['folder']}") + "/x"
    paths = {"inside": inside, "beside": "/tmp/triovisor-beside"}
    return {name: attempt(os.open, path, os.O_WRONLY | os.O_CREAT) for name, path in paths.items()}


def open_descriptors(_descriptors: dict[str, int]) -> dict:
    """Every descriptor that is open."""
    return {"open": [fd for fd in range(4096) if attempt(fcntl.fcntl, fd, fcntl.F_GETFD) == "ok"]}


def still_works(_descriptors: dict[str, int]) -> dict:
    """What a driver needs."""
    answers: list[int] = []
    thread = threading.Thread(target=answers.append, args=(1,))
    thread.start()
    thread.join()
    memory = os.memfd_create("grant", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 4096)
    os.posix_fallocate(memory, 0, 4096)
    os.pwritev(memory, [b"x"], 0)
    os.fdatasync(memory)
    return {"thread": answers, "memfd": os.preadv(memory, [bytearray(1)], 0), "random": random.getrandbits(64),
            "urandom": attempt(os.open, "/dev/urandom", os.O_RDONLY)}  # fmt: skip


def signals_outside(descriptors: dict[str, int]) -> dict:
    """Signal 0, which only asks whether it might, to the pids that the test gave us."""
    return {pid: attempt(os.kill, int(pid), 0) for pid in os.pread(descriptors["pids"], 4096, 0).decode().split()}


def processes(_descriptors: dict[str, int]) -> dict:
    """What /proc shows."""
    return {
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "net": [row.split(":")[0].strip() for row in open("/proc/net/dev").readlines()[2:]],
        "mounts": [row.split()[4] for row in open("/proc/self/mountinfo")],
        "uid_map": open("/proc/self/uid_map").read().split(),
    }


def trace_own_child(_descriptors: dict[str, int]) -> dict:
    """What User-Mode Linux does to its guests' processes."""
    child = os.fork()
    if child == 0:
        _libc.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(7)
    os.waitpid(child, 0)
    resumed = call(101, 7, child, 0, 0)
    return {"cont": resumed, "exit": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def run_given_file(descriptors: dict[str, int]) -> dict:
    """Execute a file that was given open."""
    child = os.fork()
    if child == 0:
        os.execve(descriptors["kernel"], ["busybox", "true"], {})
    return {"exit": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def fill(_descriptors: dict[str, int]) -> dict:
    """Write past the end of the jail's own file systems, and run from them."""

    def write(path: str) -> None:
        with open(path, "wb") as file:
            file.write(bytes(2 << 20))

    return {path: attempt(write, path + "/x") for path in ("/tmp", "/run", "/dev/shm")}


def limits(_descriptors: dict[str, int]) -> dict:
    """Memory, descriptors, CPUs."""

    def many() -> None:
        for _ in range(100):
            os.dup(0)

    try:
        bytearray(1 << 30)
        memory = "ok"
    except MemoryError:
        memory = "MemoryError"
    return {"memory": memory, "descriptors": attempt(many), "cpus": sorted(os.sched_getaffinity(0))}


ADDR_NO_RANDOMIZE = 0x0004_0000
UML = (
    "initcall_blacklist=raid6_select_algo,init_zswap,init_btrfs_fs,init_jfs_fs,calibrate_xor_blocks,init_hostfs",
    "con=null pty.legacy_count=0 quiet stderr=0 loglevel=0",
)


def boot_linux(descriptors: dict[str, int]) -> dict:
    """Boot User-Mode Linux from descriptors, with a vhost-user socket in /run that it must connect to."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("/run/disk.sock")
    listening.listen()
    console, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _libc.personality(ADDR_NO_RANDOMIZE)
        os.dup2(theirs.fileno(), 0)
        os.dup2(theirs.fileno(), 1)
        os.set_inheritable(descriptors["ramdisk"], True)
        arguments = ["linux", "mem=32M", f"initrd=/proc/self/fd/{descriptors['ramdisk']}", "con0=fd:0,fd:1", "rw"]
        arguments += ["noreboot", "uml_dir=/run/", "umid=g", "virtio_uml.device=/run/disk.sock:2"]
        arguments += " ".join(UML).split()
        os.execve(descriptors["kernel"], arguments, {"TMPDIR": "/dev/shm", "PATH": "/"})
    theirs.close()
    frontend, _ = listening.accept()
    asked = len(frontend.recv(12))
    frontend.close()
    text = b"".join(iter(lambda: console.recv(65536), b""))
    return {"vhost": asked, "console": text.decode(), "exit": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
