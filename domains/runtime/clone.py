"""Cloning this interpreter.

A raw clone with a copied address space is a fork to the kernel; the interpreter's own fork hooks make it one to Python
as well (locks reset, random generators reseeded, other threads forgotten).
"""

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from domains.runtime import libc
from domains.runtime.libc import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER

__all__ = ["NAMESPACES", "Child", "clone_sibling", "namespaces_of_this_host", "succeeds"]

NAMESPACES = {"pid": CLONE_NEWPID, "mount": CLONE_NEWNS, "net": CLONE_NEWNET, "ipc": CLONE_NEWIPC}
"""What a jail takes at its birth. Its user namespace it enters later, when its mounts are done."""

_CLONE_PIDFD, _CLONE_PARENT, _CLONE_CHILD_SETTID = 0x1000, 0x8000, 0x0100_0000
_SYS_CLONE, _SYS_CLONE3 = 56, 435
_PR_GET_TID_ADDRESS = 40


class _CloneArgs(ctypes.Structure):
    """`struct clone_args`, first published size (include/uapi/linux/sched.h)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    ]


@dataclass(frozen=True, slots=True)
class Child:
    """A child as its zygote knows it. The caller owns `pidfd`."""

    pid: int
    pidfd: int


def clone_sibling(namespaces: int = 0) -> Child | None:
    """Clone a child of *our parent*, in new namespaces (`CLONE_NEW*`). Returns None in the child.

    The child has this process's descriptors and memory. Raises OSError; then there is no child.
    """
    return _clone(namespaces | _CLONE_PARENT)


def _clone(flags: int) -> Child | None:
    pidfd = ctypes.c_int(-1)
    before, parent, child = ctypes.pythonapi.PyOS_BeforeFork, _after_in_parent, ctypes.pythonapi.PyOS_AfterFork_Child
    before()
    try:
        pid = _raw_clone(flags | _CLONE_PIDFD | _thread_id_flag, ctypes.addressof(pidfd))
    except OSError:
        parent()
        raise
    if pid == 0:
        child()
        return None
    parent()
    return Child(pid, pidfd.value)


_after_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent


def _raw_clone(flags: int, pidfd_address: int) -> int:
    """clone3(2), or clone(2) where a container's filter knows no clone3 and says ENOSYS."""
    exit_signal = 0 if flags & _CLONE_PARENT else signal.SIGCHLD
    arguments = _CloneArgs(flags, pidfd_address, _thread_id_address, 0, exit_signal, 0, 0, 0)
    try:
        return libc.syscall("clone3", _SYS_CLONE3, ctypes.addressof(arguments), ctypes.sizeof(arguments))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return libc.syscall("clone", _SYS_CLONE, flags | signal.SIGCHLD, 0, pidfd_address, _thread_id_address, 0)


def _find_thread_id() -> int:
    """Where the C library keeps its thread's id, 0 if the kernel cannot say. A raw clone has to renew it there."""
    address = ctypes.c_uint64(0)
    try:
        libc.prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(address))
    except OSError:
        return 0
    return address.value


_thread_id_address = _find_thread_id()
_thread_id_flag = _CLONE_CHILD_SETTID if _thread_id_address else 0


def namespaces_of_this_host() -> set[str]:
    """Those of `NAMESPACES`, and `user`, that this process may make: each tried, in a child that ends at once."""
    made = {name for name, flag in NAMESPACES.items() if _may_make(flag)}
    return made | {"user"} if _may_make(0, then_unshare=CLONE_NEWUSER) else made


def _may_make(flags: int, then_unshare: int = 0) -> bool:
    return succeeds(lambda: libc.unshare(then_unshare), flags)


def succeeds(act: Callable[[], object], flags: int = 0) -> bool:
    """Whether a child that is cloned for it, in new namespaces (`CLONE_NEW*`), can do something without an OSError."""
    try:
        child = _clone(flags)
    except OSError:
        return False
    if child is None:
        _try_and_exit(act)
    assert child is not None
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    return status == 0


def _try_and_exit(act: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        act()
        status = 0
    except OSError:
        status = 1
    finally:
        os._exit(status)
