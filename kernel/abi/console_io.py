"""Watching a guest's console: Dom0 → console driver, and then `tv` ↔ console driver.

Dom0 hands the administrator's connection over, and has no part in what follows: the connection outlives it. When the
driver dies the connection ends, and `tv` asks Dom0 for another where it stopped: output goes on at the number of the
next byte, keys at the first one that was not taken.
"""

from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.ids import U16, U63, Peer

__all__ = [
    "CONSOLE_PORT",
    "ConsoleAttach",
    "ConsoleEnded",
    "ConsoleKeys",
    "ConsoleMessage",
    "ConsoleOutput",
    "ConsoleRole",
    "ConsoleSize",
    "ConsoleTaken",
    "KEYS_BYTES",
    "OUTPUT_BYTES",
]

CONSOLE_PORT = 1
"""The console driver opens it for Dom0 as it starts."""

KEYS_BYTES = 4096
OUTPUT_BYTES = 32768


class ConsoleAttach(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Dom0 → console driver: an administrator's connection, one descriptor, to the console of a guest's incarnation.

    `tail` bytes of scroll-back come first; with `at` it is a return instead, to that number of the guest's output, and
    `keyboard` is the session that he had then, or 0. He may type if nobody else does, or with `steal`; `watch`: he
    never will.
    """

    guest: Peer
    keyboard: U63
    tail: Annotated[int, Meta(ge=0, le=262144)]
    at: U63 | None
    steal: bool
    watch: bool


class ConsoleKeys(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """tv → driver: keys, the first with this number. Promise: each reaches the guest once, in order, or is not said to
    be taken. From somebody who is not to type they are dropped."""

    number: U63
    data: Annotated[bytes, Meta(min_length=1, max_length=KEYS_BYTES)]


class ConsoleSize(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """tv → driver: the window is so large. The writer's is the guest's."""

    rows: U16
    columns: U16


class ConsoleOutput(Struct, tag=0x04, array_like=True, frozen=True, forbid_unknown_fields=True):
    """driver → tv: what the guest wrote, from byte `number` on. Where it leaves some out they were overwritten."""

    number: U63
    data: Annotated[bytes, Meta(max_length=OUTPUT_BYTES)]


class ConsoleRole(Struct, tag=0x05, array_like=True, frozen=True, forbid_unknown_fields=True):
    """driver → tv: whether you may type, first of all and when it changes. `session` is 0 where not, and never used
    again; `taken` of its keys are in the guest's line, 0 where it is new."""

    session: U63
    taken: U63


class ConsoleTaken(Struct, tag=0x06, array_like=True, frozen=True, forbid_unknown_fields=True):
    """driver → tv: so many of your keys are in the guest's line."""

    taken: U63


class ConsoleEnded(Struct, tag=0x07, array_like=True, frozen=True, forbid_unknown_fields=True):
    """driver → tv: nothing more comes, last of all."""

    why: Annotated[str, Meta(max_length=512)]


ConsoleMessage = ConsoleKeys | ConsoleSize | ConsoleOutput | ConsoleRole | ConsoleTaken | ConsoleEnded
"""On the connection. `ConsoleAttach` comes on Dom0's own channel to the driver."""
