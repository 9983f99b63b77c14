"""Landlock: a process gives up, for good, every path that no rule names.

Linux Documentation/userspace-api/landlock.rst.
"""

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from domains.runtime import libc

__all__ = [
    "EXECUTE", "READ", "READ_FILE", "WRITE_FILE", "Rule", "abi_version", "all_access", "make_ruleset", "restrict_self",
]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READ = READ_FILE | READ_DIR
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15

_FS_BITS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many file-system rights an ABI knows; 16 from ABI 5 on (IOCTL_DEV)."""
_NET_BITS = 0b11
"""ABI 4: bind and connect of TCP. No rule ever allows one."""
_SCOPES = 0b11
"""ABI 6: abstract unix sockets and signals stay inside the jail."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights on a file, or on all beneath a folder, that `descriptor` (O_PATH is enough) points to."""

    descriptor: int
    access: int


def abi_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    try:
        return libc.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def all_access(abi: int) -> int:
    """Every file-system right that `abi` knows."""
    return (1 << _FS_BITS_BY_ABI.get(abi, 16)) - 1


def make_ruleset(abi: int, rules: Iterable[Rule]) -> int:
    """A ruleset that handles all that `abi` can, and allows `rules`. The caller owns the descriptor. Raises OSError."""
    attributes = struct.pack("<QQQ", all_access(abi), _NET_BITS, _SCOPES)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for rule in rules:
            _add(ruleset, rule, abi)
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def _add(ruleset: int, rule: Rule, abi: int) -> None:
    access = rule.access & all_access(abi)
    if not stat.S_ISDIR(os.fstat(rule.descriptor).st_mode):
        access &= _OF_A_FILE
    attributes = struct.pack("<Qi", access, rule.descriptor)
    libc.syscall("landlock_add_rule", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, attributes, 0)


def restrict_self(ruleset: int) -> None:
    """Enter the ruleset. The caller has no_new_privs set. Raises OSError."""
    libc.syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
