"""A guest's end of the console ring: its output for any backend to read, and slots of keys from the present one."""

import os
import socket
from dataclasses import dataclass

from domains.frontends.key_ledger import KeyLedger, Keys, RingBroken
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
from kernel.abi.io.ring import Sealed

__all__ = ["ConsoleRing", "Size", "make_out"]


@dataclass(frozen=True, slots=True)
class Size:
    """The writer's window."""

    rows: int
    columns: int


def make_out() -> Sealed:
    """`out`, for a guest's whole life: memory that only those can write who inherit the mapping."""
    return Sealed("console-out", OUT_BYTES, read_only_to_others=True)


class _Slots:
    """`in`, for one backend incarnation."""

    def __init__(self, carried: dict[int, int]) -> None:
        self._in = Sealed("console-in", IN_BYTES, read_only_to_others=False)
        self.descriptor = self._in.descriptor
        self.view = self._in.view
        self.words = self.view[:SLOTS_AT].cast("Q")
        for word, value in carried.items():
            self.words[word] = value
        self.taken = 0

    def close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def release(self) -> None:
        self.close_descriptor()
        self.words.release()
        self._in.unmap()


class ConsoleRing:
    """The guest's console as its watchers' driver sees it, over all the driver's incarnations and all the guest's
    actors: each goes on with what it finds in `out`."""

    def __init__(self, out: Sealed) -> None:
        self._out = out
        self.out_fd = self._out.descriptor
        self._data = self._out.view[OUT_AT:]
        self._words = self._out.view[:OUT_AT].cast("Q")
        self._slots = _Slots({})
        self._doorbell: Doorbell | None = None
        self._ledger = KeyLedger(self._words[SESSION], self._words[TAKEN])
        self._written = self._words[PROD]

    # ---- the guest's output ----

    @property
    def written(self) -> int:
        """How much of what the guest wrote may be seen."""
        return self._written

    def lay(self, data: bytes) -> None:
        """Put what the guest wrote next, at most `CHUNK_BYTES`, where nobody looks yet. The oldest is overwritten."""
        assert len(data) <= CHUNK_BYTES
        at = self._written % OUT_RING
        first = data[: OUT_RING - at]
        self._data[at : at + len(first)] = first
        if len(first) < len(data):
            self._data[: len(data) - len(first)] = data[len(first) :]

    def show(self, upto: int) -> None:
        """Let watchers see what was laid there, up to this byte."""
        self._written = self._words[PROD] = upto
        self.ring()

    def last(self, size: int, upto: int) -> bytes:
        """So many bytes before that one, or as many as there are."""
        return bytes(self._data[number % OUT_RING] for number in range(max(0, upto - size), upto))

    def unseen(self) -> int:
        """How far the slowest watcher is behind; 0 where nobody watches, or what the backend says cannot be."""
        words = self._slots.words
        behind = self._written - words[SEEN]
        return behind if words[WATCHERS] and 0 <= behind <= OUT_RING else 0

    def would_outrun(self, size: int) -> bool:
        """So many bytes more would be more than a watcher may be behind."""
        unseen = self.unseen()
        return unseen > 0 and unseen + size > TAIL_BYTES

    # ---- keys ----

    def next_slot(self) -> Keys | Size | None:
        """The next slot's content, copied, without the keys that came before; `took` ends it. Raises RingBroken."""
        slots = self._slots
        waiting = slots.words[PROD] - slots.taken
        if waiting == 0:
            return None
        if not 0 < waiting <= SLOTS:
            raise RingBroken("slots run ahead", f"prod {slots.taken + waiting}, taken {slots.taken}")
        at = SLOTS_AT + slots.taken % SLOTS * SLOT_BYTES
        slot = bytes(slots.view[at : at + SLOT_BYTES])
        session, number, length, kind = SLOT.unpack_from(slot)
        if length > SLOT_DATA:
            raise RingBroken("a slot too long", f"length {length}")
        data = slot[SLOT.size : SLOT.size + length]
        if kind == SlotKind.SIZE and length == 4:
            return Size(int.from_bytes(data[:2], "little"), int.from_bytes(data[2:], "little"))
        if kind != SlotKind.KEYS:
            raise RingBroken("a slot of no kind", f"kind {kind}, length {length}")
        keys = self._ledger.look(session, number, data)
        self._publish_taken()
        return keys

    @property
    def taken(self) -> int:
        """How many keys of the session count as typed."""
        return self._ledger.taken

    def took_keys(self, count: int) -> None:
        """So many of the slot's keys are in the guest's line."""
        self._ledger.took(count)
        self._publish_taken()
        self.ring()

    def took_slot(self) -> None:
        """The backend may fill it again."""
        self._slots.taken += 1
        self._words[SLOTS_TAKEN] = self._slots.taken
        self.ring()

    def _publish_taken(self) -> None:
        if self._words[SESSION] != self._ledger.session:
            self._words[TAKEN] = 0
            self._words[SESSION] = self._ledger.session
        self._words[TAKEN] = self._ledger.taken

    # ---- its backends ----

    @property
    def watch(self) -> dict[int, int]:
        """Who watches, as the backend said last, as far as it can be."""
        words = self._slots.words
        return {SEEN: min(words[SEEN], self._written), WATCHERS: words[WATCHERS], WRITER: words[WRITER] % BEYOND}

    @watch.setter
    def watch(self, carried: dict[int, int]) -> None:
        for word, value in carried.items():
            self._slots.words[word] = value

    def renew(self) -> int:
        """New slots, for a backend whose predecessors are all gone: the descriptor to grant. What a predecessor put
        into the old ones and was not taken will come again. `close_descriptor` then."""
        fresh = _Slots(self.watch)
        self._slots.release()
        self._slots = fresh
        self._words[SLOTS_TAKEN] = 0
        self.hang_up()
        return fresh.descriptor

    def granted(self) -> None:
        """The slots are granted: only the mapping is still needed."""
        self._slots.close_descriptor()

    def attach_doorbell(self, doorbell: socket.socket) -> Doorbell:
        """Take the doorbell to the backend, and ring it."""
        self.hang_up()
        self._doorbell = Doorbell(doorbell)
        self.ring()
        return self._doorbell

    def ring(self) -> None:
        """Wake the backend, where there is one."""
        if self._doorbell is not None:
            self._doorbell.ring()

    def hang_up(self) -> None:
        """Serve this backend no more."""
        if self._doorbell is not None:
            self._doorbell.close()
        self._doorbell = None

    def release(self) -> None:
        """Give everything back. The peer keeps what it has mapped."""
        self.hang_up()
        self._slots.release()
        os.close(self.out_fd)
        self._data.release()
        self._words.release()
        self._out.unmap()
