"""Dom0 ↔ a guest's actor: running commands in the guest.

The guest opens its port `AGENT_PORT` for Dom0 as it starts. On that channel Dom0 offers one further port for
each command; on the channel that the guest binds there, one command runs. So a slow reader of one
command's output holds up that command alone. An administrator's connection carries the same messages.
"""

import enum
from typing import Annotated

from msgspec import Meta, Struct

__all__ = [
    "AGENT_PORT",
    "CHUNK_BYTES",
    "AgentMessage",
    "ExecEnded",
    "ExecInput",
    "ExecMessage",
    "ExecOffer",
    "ExecOutput",
    "ExecSignal",
    "ExecStart",
    "Stream",
]

AGENT_PORT = 1
CHUNK_BYTES = 16384

Argument = Annotated[bytes, Meta(max_length=32768)]


class Stream(enum.IntEnum):
    STDOUT = 1
    STDERR = 2


class ExecOffer(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Dom0 → guest: bind this unbound port of mine; a command comes there."""

    port: Annotated[int, Meta(ge=1, le=0xFFFF)]


class ExecStart(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """→ guest: run this, first of all on a new channel. `argv[0]` is looked up in the guest's PATH."""

    argv: Annotated[list[Argument], Meta(min_length=1, max_length=256)]


class ExecInput(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """→ guest: bytes for the command's standard input; empty for its end."""

    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class ExecSignal(Struct, tag=0x04, array_like=True, frozen=True, forbid_unknown_fields=True):
    """→ guest: send the command a signal of Linux."""

    number: Annotated[int, Meta(ge=1, le=64)]


class ExecOutput(Struct, tag=0x05, array_like=True, frozen=True, forbid_unknown_fields=True):
    """← guest: bytes that the command wrote, in order within its stream."""

    stream: Stream
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class ExecEnded(Struct, tag=0x06, array_like=True, frozen=True, forbid_unknown_fields=True):
    """← guest: the command has ended, last of all on its channel.

    Exactly one of `status` and `signal` is given, or neither: then the command's end is not known, and `why` says why.
    """

    status: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    why: Annotated[str, Meta(max_length=512)] = ""


AgentMessage = ExecOffer
ExecMessage = ExecStart | ExecInput | ExecSignal | ExecOutput | ExecEnded
