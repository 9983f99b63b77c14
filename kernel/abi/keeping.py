"""Hypervisor, Dom0 ↔ log keeper.

The keeper is trusted code, but parses what domains write; so it has a process of its own. It knows whose a
pipe is because the hypervisor says so, never because the text does.
"""

import enum
from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.ids import Name, Peer

__all__ = [
    "TAIL_BYTES",
    "KeepPipe",
    "KeepRenamed",
    "KeepRequest",
    "KeepTails",
    "PipeEnded",
    "PipeKind",
    "Tail",
    "TailEnd",
    "TailMessage",
    "TailPart",
]

TAIL_BYTES = 256 * 1024
"""Of each console and of the hypervisor's log, kept in memory."""


class PipeKind(enum.IntEnum):
    """LOG: JSON lines into `log/NAME.GENERATION.jsonl`. CONSOLE: raw bytes appended to `console/NAME.log`."""

    LOG = 1
    CONSOLE = 2


class KeepPipe(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Hypervisor → keeper: read this pipe to its end. Carries one descriptor; the hypervisor keeps a copy of its own
    until `PipeEnded`, so that a new keeper can go on where one died."""

    peer: Peer
    name: Name
    kind: PipeKind


class KeepTails(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Hypervisor → keeper: answer `Tail`s on this channel from now on, and on the one before no more. Carries one
    descriptor."""


class KeepRenamed(Struct, tag=0x04, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Hypervisor → keeper: the guest of that name has another: so has its console. A file of that name, of an earlier
    guest, is kept with a number behind it."""

    before: Name
    name: Name


class PipeEnded(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → hypervisor: that pipe is at its end, and all of it is in its file."""

    peer: Peer
    kind: PipeKind


class Tail(Struct, tag=0x10, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Dom0 → keeper: the last `TAIL_BYTES` of a guest's console by its name, or of the hypervisor's log without one."""

    name: Name | None = None


class TailPart(Struct, tag=0x11, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → Dom0: a piece of it, in order."""

    data: Annotated[bytes, Meta(max_length=32768)]


class TailEnd(Struct, tag=0x12, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Keeper → Dom0: that was all. `known` is false where nothing was ever kept under the name."""

    known: bool


KeepRequest = KeepPipe | KeepTails | KeepRenamed | Tail
TailMessage = PipeEnded | TailPart | TailEnd
