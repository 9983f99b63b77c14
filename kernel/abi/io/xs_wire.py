"""The wire between xenstore and a client of it (`xen/include/public/io/xs_wire.h`; `docs/misc/xenstore.txt`).

A message is a header of four little-endian u32 and a body of at most `PAYLOAD_MAX` bytes, mostly strings that end in
NUL. A client sends requests; each is answered by one message with the same `req_id` and `tx_id`, whose op is the
request's, or `Op.ERROR` with an `ErrorName` as its body. Between replies come `Op.WATCH_EVENT`s, whose ids are 0.

A longer body than `PAYLOAD_MAX` breaks the protocol: the connection of whoever sent it is closed.
"""

import enum
import struct

__all__ = [
    "ABS_PATH_MAX", "HEADER", "OPS", "PAYLOAD_MAX", "REL_PATH_MAX", "ErrorName", "Op", "pack_message",
]  # fmt: skip

HEADER = struct.Struct("<IIII")
"""op, req_id (the client's choice, echoed), tx_id (0: in no transaction), length of the body."""

PAYLOAD_MAX = 4096
ABS_PATH_MAX = 3072
REL_PATH_MAX = 2048


class Op(enum.IntEnum):
    """What a message is. 20 was RESTRICT, and is nothing now."""

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
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    INVALID = 0xFFFF


OPS = 23
"""One more than the last valid op."""


class ErrorName(enum.StrEnum):
    """The body of an ERROR, without its NUL: names, since numbers differ between systems."""

    EINVAL = "EINVAL"
    EACCES = "EACCES"
    EEXIST = "EEXIST"
    EISDIR = "EISDIR"
    ENOENT = "ENOENT"
    ENOMEM = "ENOMEM"
    ENOSPC = "ENOSPC"
    EIO = "EIO"
    ENOTEMPTY = "ENOTEMPTY"
    ENOSYS = "ENOSYS"
    EROFS = "EROFS"
    EBUSY = "EBUSY"
    EAGAIN = "EAGAIN"
    EISCONN = "EISCONN"
    E2BIG = "E2BIG"
    EPERM = "EPERM"


def pack_message(op: int, req_id: int, tx_id: int, body: bytes) -> bytes:
    """A whole message. The body is the caller's to bound."""
    return HEADER.pack(op, req_id, tx_id, len(body)) + body
