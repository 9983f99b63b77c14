"""The system calls that Python has no name for. Each raises OSError, naming the call.

Through PyDLL: the interpreter lock stays held, which a clone needs and a jail, single-threaded, does not mind.
"""

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong, c_void_p

__all__ = [
    "address_of", "capset_none", "default_action", "mount", "mount_setattr", "pivot_root", "prctl", "syscall", "umount",
    "unshare",
]

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.mount.argtypes = [c_char_p, c_char_p, c_char_p, c_ulong, c_char_p]
_libc.umount2.argtypes = [c_char_p, c_int]
_libc.prctl.argtypes = [c_int, c_ulong, c_ulong, c_ulong, c_ulong]
_libc.signal.argtypes = [c_int, c_void_p]
_libc.unshare.argtypes = [c_int]

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x0002_0000, 0x0800_0000, 0x1000_0000
CLONE_NEWPID, CLONE_NEWNET = 0x2000_0000, 0x4000_0000

_SYS_CAPSET, _SYS_PIVOT_ROOT, _SYS_MOUNT_SETATTR = 126, 155, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CAPABILITY_VERSION_3 = 0x2008_0522


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    """Any call by its x86-64 number. Integers are passed as long, bytes as a pointer to them."""
    return _check(_libc.syscall(c_long(number), *map(_as_long, arguments)), name)


def _as_long(argument: int | bytes | None) -> object:
    return c_long(argument) if isinstance(argument, int) else argument


def address_of(data: ctypes.Array[ctypes.c_char] | ctypes.Structure) -> int:
    """Where `data` lies; valid for as long as the caller keeps it."""
    return ctypes.addressof(data)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode() or None)
    _check(result, f"mount {kind or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"umount {target}")


def mount_setattr(target: str, set_flags: int, *, recursive: bool) -> None:
    """Add `MOUNT_ATTR_*` flags to a mount (mount_setattr(2), Linux 5.12); flags that it has already stay."""
    attributes = ctypes.create_string_buffer(set_flags.to_bytes(8, "little").ljust(32, b"\0"), 32)
    flags = _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        c_long(_SYS_MOUNT_SETATTR), c_int(_AT_FDCWD), target.encode(), c_int(flags), attributes, c_size_t(32)
    )
    _check(result, f"mount_setattr {target}")


def pivot_root(new_root: str, old_root: str) -> None:
    """pivot_root(2)."""
    result = _libc.syscall(c_long(_SYS_PIVOT_ROOT), new_root.encode(), old_root.encode())
    _check(result, "pivot_root")


def prctl(operation: int, argument: int = 0) -> int:
    """prctl(2) with one argument; the others are 0, as the newer operations demand."""
    return _check(_libc.prctl(operation, argument, 0, 0, 0), f"prctl {operation}")


def default_action(signal: int) -> None:
    """signal(2) with SIG_DFL. Python's table of handlers does not hear of it; telling it costs a clone 0.1 ms."""
    _libc.signal(signal, None)


def unshare(flags: int) -> None:
    """unshare(2) of the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def capset_none() -> None:
    """Give up every capability, for good: effective, permitted and inheritable, and with them the ambient ones."""
    header = ctypes.create_string_buffer(_CAPABILITY_VERSION_3.to_bytes(8, "little"), 8)
    _check(_libc.syscall(c_long(_SYS_CAPSET), header, ctypes.create_string_buffer(24)), "capset")
