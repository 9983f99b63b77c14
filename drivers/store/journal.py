"""The journal: what has changed, record by record, in memory that outlives the process.

Two halves. One has a snapshot as its first records and all changes since; when those are more than the snapshot by far,
or it is full, a snapshot goes into the other, and then one word says that this is the one. A record is there when its
word is, and that is stored last, at once: whenever the process dies, what was appended is whole, and what was not is
not there.
"""

from collections.abc import Callable, Iterable, Iterator
from zlib import crc32

__all__ = ["Full", "Journal"]

WORD = 8
_HEAD = 64
"""Bytes before the halves. The first word is the epoch: how often a half was begun. An even one's is the first half.
The two words behind it are how long the snapshots in the halves are."""

LEAST, GROWTH = 128 << 10, 2
"""Bytes of changes, and how often the snapshot's length, that a successor may have to read besides it: some ten
milliseconds."""


class Full(Exception):
    """There is no room, not even in a half that was begun anew."""


class Journal:
    """Over `memory`, all zeros at first, of a fixed size. One process writes at a time."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory[: len(memory) // WORD * WORD].cast("Q")
        self._half = (len(memory) - _HEAD) // 2 // WORD * WORD
        self._epoch = self._seed = self._at = self._end = self._long = 0
        self._begin(self._words[0])

    def records(self) -> Iterator[memoryview]:
        """All that is there, oldest first. `append` goes on behind it once this has come to its end."""
        while True:
            word = self._words[self._at // WORD] if self._at + WORD <= self._end else 0
            length = word & 0xFFFF_FFFF
            start = self._at + WORD
            if not length or start + length > self._end:
                return
            data = self._memory[start : start + length]
            if crc32(data, self._seed) != word >> 32:
                return
            yield data
            self._at = _after(start + length)

    def append(self, record: bytes, snapshot: Callable[[], Iterable[bytes]]) -> None:
        """Add a record. In time the other half begins with `snapshot()`, which stands for all before. Raises Full, with
        nothing changed, where there is no room even so."""
        if self._at > self._long:
            self._turn_over(snapshot())
        if not self._fits(record) and not (self._turn_over(snapshot()) and self._fits(record)):
            raise Full
        self._put(record)

    def _turn_over(self, snapshot: Iterable[bytes]) -> bool:
        """Begin the other half. False, and nothing has changed, where the snapshot does not fit."""
        epoch, at = self._epoch, self._at
        self._begin(epoch + 1)
        began = self._at
        for record in snapshot:
            if not self._fits(record):
                self._begin(epoch)
                self._at = at
                return False
            self._put(record)
        self._words[1 + (self._epoch & 1)] = length = self._at - began
        self._long = self._at + max(LEAST, GROWTH * length)
        self._words[0] = self._epoch
        return True

    def _begin(self, epoch: int) -> None:
        """The half of an epoch. What lies there of an earlier one does not match its seed, and what lies there of a try
        that was cut short is behind a word that says so."""
        self._epoch = epoch
        self._seed = crc32(epoch.to_bytes(WORD, "little"))
        self._at = _HEAD + self._half * (epoch & 1)
        self._end = self._at + self._half
        length = self._words[1 + (epoch & 1)]
        self._long = self._at + length + max(LEAST, GROWTH * length)

    def _fits(self, record: bytes) -> bool:
        """With a word behind it that says that there is no more."""
        return _after(self._at + WORD + len(record)) + WORD <= self._end

    def _put(self, record: bytes) -> None:
        start = self._at + WORD
        end = start + len(record)
        self._memory[start:end] = record
        after = _after(end)
        self._words[after // WORD] = 0
        self._words[self._at // WORD] = crc32(record, self._seed) << 32 | len(record)
        self._at = after


def _after(at: int) -> int:
    return (at + WORD - 1) // WORD * WORD
