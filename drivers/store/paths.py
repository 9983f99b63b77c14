"""Names of nodes: which are valid, what they are below, what a relative one means."""

import re
from functools import lru_cache

from drivers.store.refusal import Refusal
from kernel.abi.io.xs_wire import REL_PATH_MAX

__all__ = ["ROOT", "SPECIAL", "absolute", "canonical", "home_of", "name_of", "parent_of"]

ROOT = b"/"
SPECIAL = (b"@introduceDomain", b"@releaseDomain")
"""Not in the tree: events that can be watched."""

_VALID = re.compile(rb"/(?:[A-Za-z0-9_@-]+(?:/[A-Za-z0-9_@-]+)*)?").fullmatch
_OF_A_DOMAIN = re.compile(rb"/local/domain/[0-9]+/").match


def home_of(domid: int) -> bytes:
    """A domain's own folder, where its relative paths begin."""
    return b"/local/domain/%d" % domid


def absolute(path: bytes, home: bytes) -> bytes:
    """What is meant, valid or not."""
    return path if path.startswith((b"/", b"@")) else home + b"/" + path


@lru_cache(maxsize=4096)
def canonical(path: bytes, home: bytes) -> bytes:
    """The absolute path that is meant. Refuses EINVAL what is none."""
    full = absolute(path, home)
    if not _VALID(full):
        raise Refusal("EINVAL")
    if len(full) > REL_PATH_MAX:
        folder = _OF_A_DOMAIN(full)
        if folder is None or len(full) - folder.end() > REL_PATH_MAX:
            raise Refusal("EINVAL")
    return full


def parent_of(path: bytes) -> bytes:
    """The node right above. The root is its own."""
    return path[: path.rindex(b"/")] or ROOT


def name_of(path: bytes) -> bytes:
    """What its parent calls it."""
    return path[path.rindex(b"/") + 1 :]
