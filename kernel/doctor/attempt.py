"""System calls that the standard library lacks, and a child process to try in what cannot be taken back."""

import ctypes
import os
from collections.abc import Callable
from typing import NoReturn

import msgspec

__all__ = ["in_child", "libc_call", "system_call"]

_libc = ctypes.CDLL(None, use_errno=True)
_outcome = msgspec.json.Decoder(tuple[int, str])


def libc_call(name: str, *arguments: object) -> int:
    """Call a C library function that answers -1 and sets errno; raises OSError with that errno."""
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number: int, *arguments: object) -> int:
    """Make a system call by number, with C longs; raises OSError with its errno."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return libc_call("syscall", ctypes.c_long(number), *wide)


def in_child(act: Callable[[], str]) -> str:
    """What `act` answers in a forked child, or the OSError that it raises there.

    For short acts only, that make system calls and take no locks: the parent of the fork may have threads.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer_and_end(act, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not told:
        raise OSError(0, f"the trial process ended with {os.waitstatus_to_exitcode(status)}")
    error, text = _outcome.decode(told)
    if error:
        raise OSError(error, text)
    return text


def _answer_and_end(act: Callable[[], str], writer: int) -> NoReturn:
    status = 1
    try:
        try:
            outcome = (0, act())
        except OSError as error:
            outcome = (error.errno or 1, error.strerror or str(error))
        os.write(writer, msgspec.json.encode(outcome))
        status = 0
    finally:
        os._exit(status)
