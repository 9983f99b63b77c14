"""What a guest's actor notes for its successor, in memory that outlives it: whether the agent has ever been ready, and
how far the console's bytes have come."""

import enum
import mmap

__all__ = ["Note", "Notes"]


class Note(enum.IntEnum):
    """The words, each a u64 that is stored whole. 0 at first."""

    AGENT_READY = 0
    PICKED = 1
    """How many of the guest's bytes were taken from its line. Those beyond the ring's `prod` are in the ring all the
    same, and in the console's sluice what of them is not yet in the keeper's pipe."""
    TYPING = 2
    """`taken` once the keys in their sluice count. 0: there are none."""
    ROOM = 3
    """What is known of the guest's input line (`LineRoom.pack`)."""
    ROOM_AFTER = 4
    """The same with the keys that `TYPING` tells of."""
    SEEN = 5
    WATCHERS = 6
    WRITER = 7
    """What the console's backend said last (`consif.SEEN` …)."""


class Notes:
    """Each actor maps the same memory, one at a time."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        self._words = memoryview(mmap.mmap(descriptor, 0)).cast("Q")

    def __getitem__(self, note: Note) -> int:
        return self._words[note]

    def __setitem__(self, note: Note, value: int) -> None:
        self._words[note] = value
