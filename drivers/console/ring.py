"""The backend's end of the console ring."""

import socket
import struct

from domains.runtime.doorbell import Doorbell
from kernel.abi.io.consif import (
    BEYOND,
    CHUNK_BYTES,
    IN_BYTES,
    OUT_AT,
    OUT_BYTES,
    OUT_RING,
    PROD,
    SEEN,
    SESSION,
    SLOT,
    SLOT_BYTES,
    SLOT_DATA,
    SLOTS,
    SLOTS_AT,
    SLOTS_TAKEN,
    TAIL_BYTES,
    TAKEN,
    WATCHERS,
    WRITER,
    SlotKind,
)
from kernel.abi.io.ring import check_sealed

__all__ = ["BackRing", "FrontendBroken"]

MOST_AWAITED = 256
"""More watchers than can have been there are not waited for."""


class FrontendBroken(Exception):
    """The frontend broke the ring's rules. `evidence` is what was found, in words."""

    def __init__(self, what: str, evidence: str) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


class BackRing:
    """A guest's output, and slots for its keys. `carried` is what a predecessor left (`Desk`). What the guest's side
    wrote is read once, and looked at before use."""

    def __init__(self, out_fd: int, in_fd: int, doorbell: socket.socket) -> None:
        """Map both grants; the descriptors stay the caller's, the doorbell is ours. Raises Unsealed, FrontendBroken."""
        self._out = check_sealed(out_fd, OUT_BYTES, writable=False)
        self._in = check_sealed(in_fd, IN_BYTES, writable=True)
        self.doorbell = Doorbell(doorbell)
        self._data = self._out[OUT_AT:]
        self._out_words = self._out[:OUT_AT].cast("Q")
        self._in_words = self._in[:SLOTS_AT].cast("Q")
        self._written = 0
        self._placed = 0
        words = self._in_words
        self.carried = words[SEEN], min(words[WATCHERS], MOST_AWAITED), words[WRITER], self._out_words[SESSION]
        if max(self.carried) >= BEYOND:
            raise FrontendBroken("a header that cannot be", f"carried {self.carried}")

    def written(self) -> int:
        """How much the guest has written. Raises FrontendBroken where that goes back."""
        written = self._out_words[PROD]
        if not self._written <= written < BEYOND:
            raise FrontendBroken("prod runs back", f"prod {written} after {self._written}")
        self._written = written
        return written

    def read(self, start: int, stop: int) -> bytes | None:
        """That part of the output. None where it may have been overwritten meanwhile."""
        if start == stop:
            return b""
        at, end = start % OUT_RING, (stop - 1) % OUT_RING + 1
        data = bytes(self._data[at:end]) if at < end else bytes(self._data[at:]) + bytes(self._data[:end])
        return data if self.written() - start <= OUT_RING - CHUNK_BYTES else None

    def taken(self, session: int) -> int:
        """How many keys of a session are in the guest's line."""
        return self._out_words[TAKEN] if self._out_words[SESSION] == session else 0

    def has_room(self) -> bool:
        """Whether a slot is free. Raises FrontendBroken for more taken than there were."""
        waiting = self._placed - self._out_words[SLOTS_TAKEN]
        if not 0 <= waiting <= SLOTS:
            raise FrontendBroken("more slots taken than filled", f"{waiting} waiting of {self._placed}")
        return waiting < SLOTS

    def put_keys(self, session: int, number: int, keys: bytes) -> int:
        """Fill a slot, of which there is one, with the first of these keys. Returns how many."""
        data = keys[:SLOT_DATA]
        self._put(session, number, SlotKind.KEYS, data)
        return len(data)

    def put_size(self, session: int, rows: int, columns: int) -> None:
        """Fill a slot, of which there is one, with the window's size."""
        self._put(session, 0, SlotKind.SIZE, struct.pack("<HH", rows, columns))

    def _put(self, session: int, number: int, kind: SlotKind, data: bytes) -> None:
        at = SLOTS_AT + self._placed % SLOTS * SLOT_BYTES
        SLOT.pack_into(self._in, at, session, number, len(data), kind)
        self._in[at + SLOT.size : at + SLOT.size + len(data)] = data
        self._placed += 1
        self._in_words[PROD] = self._placed
        self.doorbell.ring()

    def tell(self, seen: int, watchers: int, writer: int) -> None:
        """How far all have seen, how many they are, whose the keyboard is. Rings where the guest may be held up, and
        where it is to note who is there."""
        words = self._in_words
        before, others = words[SEEN], (words[WATCHERS], words[WRITER])
        words[SEEN], words[WATCHERS], words[WRITER] = seen, watchers, writer
        if others != (watchers, writer) or self._written - before > TAIL_BYTES - CHUNK_BYTES:
            self.doorbell.ring()

    def close(self) -> None:
        """Unmap, and hang up the doorbell."""
        self.doorbell.close()
        for view in (self._data, self._out_words, self._in_words, self._out, self._in):
            view.release()
