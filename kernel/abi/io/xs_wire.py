"""xenstore's wire (`xen/include/public/io/xs_wire.h`): each message a header of four little-endian words, and a
body."""

import struct
from enum import IntEnum

__all__ = ["ABS_PATH_MAX", "ERRORS", "HEADER", "PAYLOAD_MAX", "REL_PATH_MAX", "Op", "pack_message"]

HEADER = struct.Struct("<IIII")
"""`struct xsd_sockmsg`: operation, request id (the client's own, given back), transaction id (0 for none), length of
the body."""

PAYLOAD_MAX = 4096
"""XENSTORE_PAYLOAD_MAX, of a body."""

ABS_PATH_MAX, REL_PATH_MAX = 3072, 2048
"""XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX: of a path, and of what follows a domain's own folder in it."""


class Op(IntEnum):
    """`enum xsd_sockmsg_type`."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESTRICT = 20
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


ERRORS = (
    "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO", "ENOTEMPTY", "ENOSYS", "EROFS",
    "EBUSY", "EAGAIN", "EISCONN", "E2BIG", "EPERM",
)  # fmt: skip
"""`xsd_errors`: an ERROR's body is one of these names."""


def pack_message(op: int, request_id: int, tx_id: int, body: bytes) -> bytes:
    """A whole message."""
    return HEADER.pack(op, request_id, tx_id, len(body)) + body
