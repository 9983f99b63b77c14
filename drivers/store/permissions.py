"""Who may do what with a node.

A node has a list of permissions. The first names its owner, who may do everything, and says what everybody may who is
in no other; each of the others names a domain and what that may. Dom0 may do everything everywhere. A domain that has
a target (`Op.SET_TARGET`: a device model) may do what that may.
"""

import re
from collections.abc import Sequence

from drivers.store.errors import EINVAL, Refused

__all__ = ["BOTH", "DEAD", "NONE", "OWNER", "READ", "WRITE", "Permissions", "granted", "parse", "render", "without"]

NONE, READ, WRITE, BOTH, OWNER = 0, 1, 2, 3, 8
DEAD = 16
"""The domain that this names was not there, or is gone: it gives nothing, also not to a later domain of that number."""

Permissions = tuple[tuple[int, int], ...]
"""(domid, what it may), the owner's first, never empty."""

LETTERS = b"nrwb"
ENTRY = re.compile(rb"([nrwb])(0|[1-9][0-9]{0,9})")


def granted(permissions: Permissions, domid: int, target: int | None = None) -> int:
    """What a domain other than Dom0 may: READ, WRITE and OWNER, or-ed."""
    owner, default = permissions[0]
    if owner in (domid, target):
        return READ | WRITE | OWNER
    for entry, may in permissions[1:]:
        if entry in (domid, target) and not may & DEAD:
            return may
    return default & BOTH


def parse(strings: Sequence[bytes]) -> Permissions:
    """From the wire: `n7`, `r0` and so on. Raises Refused."""
    entries = [ENTRY.fullmatch(string) for string in strings]
    if None in entries:
        raise Refused(EINVAL)
    return tuple((int(entry[2]), LETTERS.index(entry[1])) for entry in entries if entry)


def render(permissions: Permissions) -> bytes:
    """For the wire, each with a NUL."""
    return b"".join(b"%c%d\0" % (LETTERS[may & BOTH], domid) for domid, may in permissions)


def without(permissions: Permissions, domid: int) -> Permissions:
    """Of a node that stays when a domain goes: what that was given is dead. The owner is not looked at."""
    if all(entry != domid for entry, _ in permissions[1:]):
        return permissions
    rest = ((entry, may | DEAD if entry == domid else may) for entry, may in permissions[1:])
    return (permissions[0], *rest)
