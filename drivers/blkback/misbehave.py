"""Ways for a backend to fail on order, so that tests and the demo can show what becomes of its guests."""

import os
import threading
from collections.abc import Callable, Iterable

from drivers.blkback.ring import BackRing

__all__ = ["ACTS", "misbehave"]

_CHUNK_BYTES = 1 << 30


def _hang(rings: Iterable[BackRing]) -> None:
    """Wait for what never comes."""
    never = threading.Lock()
    never.acquire()
    never.acquire()


def _exit(rings: Iterable[BackRing]) -> None:
    os._exit(0)


def _oom(rings: Iterable[BackRing]) -> None:
    """Take address space until there is none: it ends in MemoryError, and that ends the process."""
    hoard = []
    while True:
        hoard.append(bytearray(_CHUNK_BYTES))


def _corrupt_ring(rings: Iterable[BackRing]) -> None:
    for ring in rings:
        ring.lie(index=True)


def _stray_reply(rings: Iterable[BackRing]) -> None:
    for ring in rings:
        ring.lie(index=False)


ACTS: dict[str, Callable[[Iterable[BackRing]], None]] = {
    "hang": _hang,
    "exit": _exit,
    "oom": _oom,
    "corrupt-ring": _corrupt_ring,
    "stray-reply": _stray_reply,
}


def misbehave(what: str, rings: Iterable[BackRing]) -> None:
    """Do it, on the loop's thread, to the rings being served. An act that is not in `ACTS` is ignored."""
    act = ACTS.get(what)
    if act is not None:
        act(rings)
