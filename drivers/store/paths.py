"""Names of nodes: `/local/domain/7/device/vbd/51712`."""

import re

from kernel.abi.io.xs_wire import REL_PATH_MAX

__all__ = ["ancestors", "child_of", "domain_path", "is_valid", "name_of", "parent_of", "whole_path"]

PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"
OF_A_DOMAIN = re.compile(rb"/local/domain/[0-9]{1,5}/")
"""What stands before the relative part of a domain's paths, and does not count for their length."""


def is_valid(path: bytes, longest: int = REL_PATH_MAX) -> bool:
    """Whether a node may have this absolute path: no `//`, no `/` at the end, no character that is not plain."""
    if not path.startswith(b"/") or b"//" in path or path.translate(None, PLAIN):
        return False
    if path.endswith(b"/"):
        return path == b"/"
    if len(path) <= longest:
        return True
    prefix = OF_A_DOMAIN.match(path)
    return prefix is not None and len(path) <= longest + prefix.end()


def domain_path(domid: int) -> bytes:
    return b"/local/domain/%d" % domid


def whole_path(domid: int, path: bytes) -> bytes:
    """What a client of this domain means: all but `/…` and `@…` is relative to its domain's own node."""
    if path.startswith((b"/", b"@")):
        return path
    return b"/local/domain/%d/%s" % (domid, path)


def parent_of(path: bytes) -> bytes:
    """The root is its own parent."""
    return path[: path.rfind(b"/")] or b"/"


def name_of(path: bytes) -> bytes:
    """What the parent calls it. Not for the root."""
    return path[path.rfind(b"/") + 1 :]


def child_of(path: bytes, name: bytes) -> bytes:
    return b"%s/%s" % (path, name) if path != b"/" else b"/" + name


def ancestors(path: bytes) -> list[bytes]:
    """The path itself, its parent, and so on up to the root."""
    found = [path]
    while path != b"/":
        path = path[: path.rfind(b"/")] or b"/"
        found.append(path)
    return found
