"""NBD as it is spoken with QEMU's storage daemon, which we are a client of and a server to: one export without a name
on each connection, fixed newstyle handshake, simple replies.

Source: doc/proto.md of github.com/NetworkBlockDevice/nbd. All numbers are big-endian. The other end reads images of
strangers: it is believed nothing without a look.
"""

import enum
import socket
import struct
from dataclasses import dataclass

__all__ = [
    "MAX_DATA", "REPLY_BYTES", "REQUEST_BYTES", "Command", "ProtocolError", "Request", "ask", "negotiate", "offer",
    "read_reply", "read_request", "receive", "receive_into", "reply",
]  # fmt: skip

_MAGIC, _OPTION_MAGIC, _OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_ABORT, _OPT_GO = 2, 7
_REP_ACK, _REP_INFO, _REP_ERROR, _REP_ERR_UNSUP = 1, 3, 1 << 31, 1 << 31 | 1
_INFO_EXPORT = 0
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_TRIM, _SEND_WRITE_ZEROES = 1, 2, 4, 32, 64

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_ANSWER = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")

REQUEST_BYTES, REPLY_BYTES = _REQUEST.size, _REPLY.size

MAX_DATA = 32 << 20
"""Of a request or reply, as both QEMU's ends have it."""

MAX_OPTION, MAX_OPTIONS = 8192, 16
"""Bytes of a word in the handshake, and how many it may take: QEMU's client has two or three."""

NO_HOLE = 2
"""Flag of WRITE_ZEROES: they stay allocated."""


class Command(enum.IntEnum):
    """NBD_CMD_*."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


_COMMANDS = frozenset(Command)


class ProtocolError(Exception):
    """The other end broke the protocol, hung up, or refused what it has to be able to."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its data; `offset` and `length` in bytes."""

    handle: int
    command: int
    flags: int
    offset: int
    length: int


def receive(connection: socket.socket, length: int) -> bytes:
    """So many bytes. Raises ProtocolError at an end before."""
    data = bytearray(length)
    receive_into(connection, memoryview(data))
    return bytes(data)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view`. Raises ProtocolError at an end before."""
    while view:
        try:
            count = connection.recv_into(view)
        except OSError as error:
            raise ProtocolError(f"it is silent ({error})") from error
        if not count:
            raise ProtocolError("it hung up")
        view = view[count:]


def negotiate(connection: socket.socket) -> int:
    """Be the client of a handshake. The export's size in bytes. Raises ProtocolError."""
    magic, option_magic, flags = _GREETING.unpack(receive(connection, _GREETING.size))
    if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
        raise ProtocolError("its greeting is not that of a newstyle server")
    wanted = struct.pack(">IH", 0, 0)
    ours = _CLIENT_FLAGS.pack(flags & (_FIXED_NEWSTYLE | _NO_ZEROES))
    connection.sendall(ours + _OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(wanted)) + wanted)
    size = -1
    for _ in range(MAX_OPTIONS):
        magic, option, kind, length = _ANSWER.unpack(receive(connection, _ANSWER.size))
        if magic != _OPTION_REPLY or option != _OPT_GO or length > MAX_OPTION:
            raise ProtocolError("its answer in the handshake is none")
        data = receive(connection, length)
        if kind & _REP_ERROR:
            raise ProtocolError(f"it refuses the export: {data.decode(errors='replace')}")
        if kind == _REP_ACK and size >= 0:
            return size
        if kind == _REP_INFO and length == _EXPORT.size and data[:2] == _INFO_EXPORT.to_bytes(2, "big"):
            _, size, _ = _EXPORT.unpack(data)
    raise ProtocolError("its handshake has no end")


def offer(connection: socket.socket, size_bytes: int, *, read_only: bool) -> None:
    """Be the server of a handshake. Raises ProtocolError."""
    connection.sendall(_GREETING.pack(_MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
    receive(connection, _CLIENT_FLAGS.size)
    for _ in range(MAX_OPTIONS):
        magic, option, length = _OPTION.unpack(receive(connection, _OPTION.size))
        if magic != _OPTION_MAGIC or length > MAX_OPTION or option == _OPT_ABORT:
            raise ProtocolError("its word in the handshake is none")
        receive(connection, length)
        if option != _OPT_GO:
            connection.sendall(_ANSWER.pack(_OPTION_REPLY, option, _REP_ERR_UNSUP, 0))
            continue
        can = _READ_ONLY if read_only else _SEND_FLUSH | _SEND_TRIM | _SEND_WRITE_ZEROES
        export = _EXPORT.pack(_INFO_EXPORT, size_bytes, _HAS_FLAGS | can)
        connection.sendall(
            _ANSWER.pack(_OPTION_REPLY, option, _REP_INFO, len(export))
            + export
            + _ANSWER.pack(_OPTION_REPLY, option, _REP_ACK, 0)
        )
        return
    raise ProtocolError("its handshake has no end")


def ask(command: Command, flags: int, handle: int, offset: int, length: int) -> bytes:
    """A request; the data of a WRITE follows it."""
    return _REQUEST.pack(_REQUEST_MAGIC, flags, command, handle, offset, length)


def read_request(data: bytes) -> Request:
    """A request; the data of a WRITE follows it. Raises ProtocolError for what is none."""
    magic, flags, command, handle, offset, length = _REQUEST.unpack(data)
    if magic != _REQUEST_MAGIC or command not in _COMMANDS or flags & ~NO_HOLE:
        raise ProtocolError(f"a request is {data.hex()}")
    if command in (Command.READ, Command.WRITE) and length > MAX_DATA:
        raise ProtocolError(f"a request has {length} bytes of data")
    return Request(handle, command, flags, offset, length)


def reply(handle: int, error: int) -> bytes:
    """A simple reply; the data of a READ without error follows it. NBD's error numbers are Linux's."""
    return _REPLY.pack(_REPLY_MAGIC, error, handle)


def read_reply(data: bytes) -> tuple[int, int]:
    """The handle and the error, 0 for none, of a simple reply. Raises ProtocolError for what is none."""
    magic, error, handle = _REPLY.unpack(data)
    if magic != _REPLY_MAGIC:
        raise ProtocolError(f"a reply begins with {magic:#x}")
    return handle, error
