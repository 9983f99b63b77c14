"""Seccomp: system-call filters, assembled here as classic BPF (Linux Documentation/userspace-api/seccomp_filter.rst).

A filter is a binary search over call numbers: the kernel evaluates it once for each number when it is installed (its
cache of calls that are always allowed), so its depth is paid at every start of a domain.
"""

import ctypes
import struct
from collections.abc import Mapping

from domains.runtime import libc

__all__ = ["ALLOW", "KILL", "Filter", "Verdict", "all_of", "assemble", "errno", "one_of"]

ALLOW = 0x7FFF_0000
KILL = 0x8000_0000
_ERRNO = 0x0005_0000

_AUDIT_ARCH_X86_64 = 0xC000_003E
_X32_BIT = 0x4000_0000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_SYS_SECCOMP, _SET_MODE_FILTER = 317, 1

Code = bytes
Verdict = int | Code
"""What becomes of a call: a `SECCOMP_RET_*` value, or code that looks at its arguments and returns one."""


def _instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> Code:
    return struct.pack("<HBBI", code, if_true, if_false, constant)


def _length(code: Code) -> int:
    return len(code) // 8


def errno(number: int) -> int:
    """The verdict: the call fails with this errno."""
    return _ERRNO | number


def _argument(index: int) -> Code:
    """Load the low half of an argument: all that the kernel looks at in the `int` arguments filtered here."""
    return _instruction(_LOAD, _ARGUMENTS + 8 * index)


def one_of(index: int, values: tuple[int, ...], yes: int, no: int) -> Code:
    """`yes` where argument `index`, an int, equals one of at most 255 `values`, else `no`."""
    tests = [
        _instruction(_JUMP_EQUAL, value & 0xFFFF_FFFF, if_true=len(values) - place)
        for place, value in enumerate(values)
    ]
    return _argument(index) + b"".join(tests) + _instruction(_RETURN, no) + _instruction(_RETURN, yes)


def all_of(index: int, required: int, forbidden: int, yes: int, no: int) -> Code:
    """`yes` where argument `index` has every bit of `required` (one bit, or 0) and none of `forbidden`, else `no`."""
    tests = _instruction(_JUMP_BITS, forbidden, if_true=1 if required else 0, if_false=0 if required else 1)
    if not required:
        return _argument(index) + tests + _instruction(_RETURN, no) + _instruction(_RETURN, yes)
    return (
        _argument(index)
        + tests
        + _instruction(_JUMP_BITS, required, if_true=1)
        + _instruction(_RETURN, no)
        + _instruction(_RETURN, yes)
    )


class Filter:
    """A program ready to be installed; made once, in a zygote."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self._memory = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("<HxxxxxxQ", _length(code), libc.address_of(self._memory))

    def install(self) -> None:
        """Put the calling thread, and all that it will clone, under the filter for good. Needs no_new_privs."""
        libc.syscall("seccomp", _SYS_SECCOMP, _SET_MODE_FILTER, 0, self._program)


def assemble(verdicts: Mapping[int, Verdict], default: int, newest: int) -> Filter:
    """A filter of x86-64 call numbers.

    A number not in `verdicts` gets `default`; one above `newest`, the last number that the list's author knew, gets
    ENOSYS. The ABIs of x32 and i386 would reach the same calls under other numbers, and nothing honest here uses
    them: they kill. Raises ValueError when the list is too long for the jumps of BPF.
    """
    enosys = errno(38)
    starts: list[tuple[int, Verdict]] = []
    for number in range(newest + 1):
        verdict = verdicts.get(number, default)
        if not starts or starts[-1][1] != verdict or isinstance(verdict, bytes):
            starts.append((number, verdict))
    starts += [(newest + 1, enosys), (_X32_BIT, KILL)]
    prologue = (
        _instruction(_LOAD, _ARCH)
        + _instruction(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, if_true=1)
        + _instruction(_RETURN, KILL)
        + _instruction(_LOAD, _NUMBER)
    )
    return Filter(prologue + _search(starts))


def _search(starts: list[tuple[int, Verdict]]) -> Code:
    """Code that finds the verdict of the last start not above the number."""
    if len(starts) == 1:
        verdict = starts[0][1]
        return verdict if isinstance(verdict, bytes) else _instruction(_RETURN, verdict)
    middle = len(starts) // 2
    below, above = _search(starts[:middle]), _search(starts[middle:])
    if _length(below) > 255:
        raise ValueError(f"{len(starts)} ranges are too many for one jump")
    return _instruction(_JUMP_GREATER_EQUAL, starts[middle][0], if_true=_length(below)) + below + above
