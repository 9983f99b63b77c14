"""Frames of the guest agent's protocol. What they mean is written in `triovisor/provision/guest/agent.c`."""

import enum
import struct
from collections.abc import Mapping, Sequence
from typing import NewType

from kernel.abi.status import Refused, Status

__all__ = [
    "CHUNK_BYTES", "CREDIT_BYTES", "HEADER", "INPUT_BYTES", "INPUT_WINDOW", "LINE_WINDOW", "MAGIC", "MAX_COMMANDS",
    "OUTPUT_WINDOW", "VERSION", "WHOLE_BYTES", "CommandId", "From", "OutputStream", "ShutdownMode", "To", "fits",
    "pack_frame", "pack_start",
]  # fmt: skip

CommandId = NewType("CommandId", int)
"""1 … 65,535; used again only after the command's last event."""

CHUNK_BYTES = 4096
OUTPUT_WINDOW = 32 * 1024
"""Bytes of each output stream that the guest may send before we say that they were taken."""

CREDIT_BYTES = OUTPUT_WINDOW // 2
"""Taken bytes are told in such portions: the guest reads our frames one byte at a time."""

INPUT_WINDOW = 16 * 1024
MAX_COMMANDS = 64
MAX_START_BYTES = 32 * 1024
MAX_ARGUMENTS = 1024
VERSION = 1

MAGIC = b"TVA1"
HEADER = struct.Struct("<4sBBHI")
_MAX_TEXT = 2048
"""Longest READY, FAILED or ERROR."""

WHOLE_BYTES = 2048
"""A frame no longer than this goes to the line whole or not at all, so that a death of ours leaves no half of one.
There is room for it in the end: the guest tells of each 1024 bytes that it got. START alone may be longer."""

INPUT_BYTES = WHOLE_BYTES - 12
"""Of a command's input in a frame."""

LINE_WINDOW = 3072
"""Bytes on their way to the guest that it has not said it got. More would end the line: see agent.c."""


class To(enum.IntEnum):
    """Frames from us."""

    HELLO = 0x01
    START = 0x02
    STDIN = 0x03
    EOF = 0x04
    SIGNAL = 0x05
    CREDIT = 0x06
    SHUTDOWN = 0x07


class From(enum.IntEnum):
    """Frames from the guest."""

    READY = 0x81
    FAILED = 0x82
    STDOUT = 0x83
    STDERR = 0x84
    EXIT = 0x85
    CREDIT = 0x86
    STOPPING = 0x87
    ERROR = 0x88
    GOT = 0x89


_LENGTHS = {
    From.READY: (15, _MAX_TEXT),
    From.FAILED: (4, _MAX_TEXT),
    From.STDOUT: (1, CHUNK_BYTES),
    From.STDERR: (1, CHUNK_BYTES),
    From.EXIT: (2, 2),
    From.CREDIT: (4, 4),
    From.STOPPING: (1, 1),
    From.ERROR: (0, _MAX_TEXT),
    From.GOT: (4, 4),
}
"""What a payload's length may be."""


class OutputStream(enum.IntEnum):
    STDOUT = 1
    STDERR = 2


class ShutdownMode(enum.IntEnum):
    POWEROFF = 0
    REBOOT = 1
    HALT = 2


def pack_frame(kind: To, command: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(MAGIC, kind, 0, command, len(payload)) + payload


def fits(kind: int, length: int) -> bool:
    """Is this a frame that a guest may send, of a length that it may have?"""
    if kind not in From._value2member_map_:
        return False
    least, most = _LENGTHS[From(kind)]
    return least <= length <= most


def pack_start(argv: Sequence[bytes], env: Mapping[bytes, bytes], folder: bytes) -> bytes:
    """START's payload. Refuses EINVAL what does not fit into 32 KiB and 1024 words, or has a NUL in it."""
    words = [*argv, *(name + b"=" + value for name, value in env.items()), folder]
    if not argv or any(b"\0" in word for word in words):
        raise Refused(Status.EINVAL, "a command is at least one word, none with a NUL in it")
    payload = struct.pack("<HH", len(argv), len(env)) + b"".join(word + b"\0" for word in words)
    if len(payload) > MAX_START_BYTES or len(words) > MAX_ARGUMENTS:
        why = f"a command of {len(words)} words and {len(payload)} bytes: at most {MAX_ARGUMENTS} and {MAX_START_BYTES}"
        raise Refused(Status.EINVAL, f"{why}; give long input on standard input")
    return payload
