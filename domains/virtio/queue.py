"""A split virtqueue, seen from the device (virtio 1.2 §2.7), with indirect descriptors and event index.

The guest may write anything at any time, so every word of its memory is read once, into a local, and judged there. What
no correct driver does raises `QueueFault`: the guest's own device stops, and nobody else notices.
"""

import struct
from collections import deque
from dataclasses import dataclass

from domains.virtio.in_flight import COPY, LAST, InFlight
from domains.virtio.memory import GuestMemory
from kernel.abi.io.ring import make_fence

__all__ = ["MAX_SIZE", "Chain", "Plain", "QueueFault", "QueueLayout", "Segments", "SplitQueue"]

MAX_SIZE = 256
"""Descriptors in a queue of ours, and in a chain (§2.7.5: no longer than the queue)."""

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
"""VIRTQ_DESC_F_*, §2.7.5."""
_NO_INTERRUPT = 1
"""VIRTQ_AVAIL_F_NO_INTERRUPT, §2.7.6."""

_DESCRIPTOR = struct.Struct("<QIHH")
_THREE = struct.Struct("<QIHHQIHHQIHH")
_THREE_BYTES = _THREE.size
_DESCRIPTOR_AT, _THREE_AT = _DESCRIPTOR.unpack_from, _THREE.unpack_from
_META_MASK, _INDIRECT_THREE = 0xFFFF_FFFF_FFFF, _THREE_BYTES | _INDIRECT << 32
"""Length and flags of an indirect descriptor that has three; its `next` means nothing."""

Segments = tuple[tuple[int, int], ...]
"""Pieces of guest memory, `(offset in the view, length)`, all within it, none empty."""

Chain = tuple[int, Segments, Segments]
"""A buffer that the guest offers: its head, what the device may read, what it may write."""

Plain = tuple[int, int, int, int, int, int, int, int]
"""A buffer of three pieces: head; offset and length of the first; of the second, and its flags; of the third."""

Descriptor = tuple[int, int, int, int]
"""Address, length, flags, next: a copy, which the guest can no longer change."""


class QueueFault(Exception):
    """The guest broke the virtqueue's rules. `evidence` is what was found, in words."""

    def __init__(self, what: str, evidence: str) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class QueueLayout:
    """Where a queue's three parts are, as offsets in the guest memory's view, and its size."""

    size: int
    descriptors: int
    available: int
    used: int


class SplitQueue:
    """The device's side of one queue. Raises QueueFault from every method that reads guest memory."""

    def __init__(
        self,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        event_index: bool,
        next_available: int = 0,
        in_flight: InFlight | None = None,
    ) -> None:
        """`in_flight`: a table that outlives this process. `begin` or `resume` comes next then, before all else."""
        _check_layout(layout, memory.size)
        size, view = layout.size, memory.view
        self.size = size
        self._mask = size - 1
        self._memory = memory
        self._view = view
        self._base = memory.base
        self._end = memory.size
        self._table = layout.descriptors
        self._descriptors = view[layout.descriptors : layout.descriptors + 16 * size].cast("Q")
        self._available = view[layout.available : layout.available + 6 + 2 * size].cast("H")
        used = view[layout.used : layout.used + 6 + 8 * size]
        self._used_words = used.cast("H")
        self._used_pairs = used[4 : 4 + 8 * size].cast("Q")
        self._event_index = event_index
        self._next = self._seen = next_available
        self._used = self._signalled = self._used_words[1]
        self._fence = make_fence()
        self.in_flight = InFlight() if in_flight is None else in_flight
        self._marks = self.in_flight.marks
        self.again: deque[int] = deque()
        """Heads of buffers that a predecessor took and did not give back, oldest first: read them anew with `chain`."""

    def begin(self) -> None:
        """The queue is new."""
        self.in_flight.begin(self._used)

    def resume(self) -> None:
        """Go on from where another process was, which may have ended between any two of its stores."""
        held = self.in_flight.recover(self._used)
        if held is None:
            raise QueueFault("used.idx was changed", f"idx {self._used}, {self._marks[COPY]} given back")
        self.again.extend(held)
        self._next = self._seen = (self._used + len(held)) & 0xFFFF

    @property
    def next_available(self) -> int:
        """Index of the first buffer not taken (§2.7.6)."""
        return self._next

    def offers(self) -> bool:
        """Whether there is something to take. Where not, the guest will kick at the next buffer."""
        return self._available[1] != self._next or len(self.again) > 0

    def take_plain(self) -> Plain | None:
        """The next buffer if it has the form that block drivers send most: an indirect table of three descriptors, each
        leading to the next, of which the first is for reading and the last for writing. Else None, with nothing taken:
        `take` decides."""
        position = self._next
        if position == self._seen and not self._look(position):
            return None
        head = self._available[2 + (position & self._mask)]
        if head >= self.size:
            return None
        descriptors = self._descriptors
        if descriptors[2 * head + 1] & _META_MASK != _INDIRECT_THREE:
            return None
        base, end = self._base, self._end
        at = descriptors[2 * head] - base
        if at < 0 or at + _THREE_BYTES > end:
            return None
        a0, l0, f0, n0, a1, l1, f1, n1, a2, l2, f2, _ = _THREE_AT(self._view, at)
        if f0 == 1 == n0 and n1 == 2 == f2 and (f1 == 3 or f1 == 1):
            a0, a1, a2 = a0 - base, a1 - base, a2 - base
            if a0 >= 0 <= a1 and a2 >= 0 and a0 + l0 <= end >= a1 + l1 and a2 + l2 <= end and l0 and l1 and l2:
                self._next = (position + 1) & 0xFFFF
                return head, a0, l0, a1, l1, f1, a2, l2
        return None

    def take(self) -> Chain | None:
        """The next buffer that the guest offers, or None."""
        position = self._next
        if position == self._seen and not self._look(position):
            return None
        taken = self.chain(self._available[2 + (position & self._mask)])
        self._next = (position + 1) & 0xFFFF
        return taken

    def chain(self, head: int) -> Chain:
        """The buffer at `head`, as the guest's descriptors have it now."""
        if head >= self.size:
            raise QueueFault("head out of range", f"head {head}, size {self.size}")
        first = _DESCRIPTOR_AT(self._view, self._table + 16 * head)
        return head, *self._walk(self._indirect_chain(first) if first[2] & _INDIRECT else self._own_chain(first))

    def _look(self, position: int) -> bool:
        """Read how far the guest's offers go."""
        self._seen = seen = self._available[1]
        offered = (seen - position) & 0xFFFF
        if offered > self.size:
            raise QueueFault("avail.idx runs ahead", f"idx {seen}, taken {position}, size {self.size}")
        return offered > 0

    def untake(self) -> None:
        """The buffer just taken goes back: the guest keeps offering it."""
        self._next = (self._next - 1) & 0xFFFF

    def _own_chain(self, first: Descriptor) -> list[Descriptor]:
        """Descriptors of a chain in the queue's own table, which may end in an indirect one (§2.7.5.3.1)."""
        chain = [first]
        _, _, flags, following = first
        while flags & _NEXT:
            if following >= self.size:
                raise QueueFault("next out of range", f"next {following}, size {self.size}")
            if len(chain) == self.size:
                raise QueueFault("chain loops", f"more than {self.size} descriptors")
            descriptor = _DESCRIPTOR_AT(self._view, self._table + 16 * following)
            _, _, flags, following = descriptor
            if flags & _INDIRECT:
                return chain + self._indirect_chain(descriptor)
            chain.append(descriptor)
        return chain

    def _indirect_chain(self, holder: Descriptor) -> list[Descriptor]:
        """The chain in the table that an indirect descriptor names, each of its descriptors read once."""
        address, length, flags, _ = holder
        at = address - self._base
        if flags & _NEXT:
            raise QueueFault("indirect descriptor with next", f"flags {flags:#x}")
        if length == 0 or length % 16 or length > 16 * MAX_SIZE:
            raise QueueFault("indirect table of a wrong length", f"{length} bytes")
        if at < 0 or at + length > self._end:
            raise QueueFault("indirect table outside memory", f"address {address:#x}, {length} bytes")
        return _follow(list(_DESCRIPTOR.iter_unpack(self._view[at : at + length])))

    def _walk(self, chain: list[Descriptor]) -> tuple[Segments, Segments]:
        """What a chain's descriptors name, those to read first, as they must be (§2.7.4.2)."""
        if len(chain) > MAX_SIZE:
            raise QueueFault("chain too long", f"{len(chain)} descriptors")
        base, end = self._base, self._end
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        for address, length, flags, _ in chain:
            offset = address - base
            if not length:
                raise QueueFault("empty descriptor", f"address {address:#x}")
            if offset < 0 or offset + length > end:
                raise QueueFault("descriptor outside memory", f"address {address:#x}, {length} bytes")
            if flags & _WRITE:
                writable.append((offset, length))
            elif writable:
                raise QueueFault("readable descriptor after a writable one", f"address {address:#x}")
            else:
                readable.append((offset, length))
        return tuple(readable), tuple(writable)

    def park(self) -> bool:
        """Ask for a kick at the next buffer. False when one has come meanwhile: take it first."""
        if self._event_index:
            self._used_words[2 + 4 * self.size] = self._next
        self._fence()
        return self._available[1] == self._next

    def publish(self, head: int, written: int) -> None:
        """Give a buffer back to the guest, with `written` bytes in its writable part. The order of the stores is what
        `in_flight` stands on."""
        used, marks = self._used, self._marks
        marks[LAST] = head
        self._used_pairs[used & self._mask] = head | written << 32
        self._used = self._used_words[1] = used = (used + 1) & 0xFFFF
        marks[head] = 0
        marks[COPY] = used

    def wants_signal(self) -> bool:
        """Whether the guest asks for an interrupt for what was published since the last call (§2.7.7.2)."""
        used, before = self._used, self._signalled
        if used == before:
            return False
        self._fence()
        self._signalled = used
        if self._event_index:
            event = self._available[2 + self.size]
            return (used - event - 1) & 0xFFFF < (used - before) & 0xFFFF
        return not self._available[0] & _NO_INTERRUPT

    def unseen(self) -> bool:
        """Whether the guest has yet to look at something published. Known only with event index."""
        return self._event_index and self._available[2 + self.size] != self._used


def _check_layout(layout: QueueLayout, memory_bytes: int) -> None:
    size = layout.size
    if not 0 < size <= MAX_SIZE or size & (size - 1):
        raise QueueFault("queue of a wrong size", f"{size} descriptors, a power of two up to {MAX_SIZE} is right")
    parts = ((layout.descriptors, 16 * size, 16), (layout.available, 6 + 2 * size, 2), (layout.used, 6 + 8 * size, 4))
    for offset, length, alignment in parts:
        if offset < 0 or offset + length > memory_bytes or offset % alignment:
            raise QueueFault("queue outside memory or unaligned", f"offset {offset:#x}, {length} bytes")


def _follow(table: list[Descriptor]) -> list[Descriptor]:
    """The chain in a table's copy, from its first descriptor on. Linux fills tables in the chain's order."""
    chain: list[Descriptor] = []
    index = 0
    while True:
        if len(chain) == len(table):
            raise QueueFault("chain loops", f"more than {len(table)} descriptors in an indirect table")
        descriptor = table[index]
        _, _, flags, index = descriptor
        chain.append(descriptor)
        if flags & _INDIRECT:
            raise QueueFault("indirect descriptor in an indirect table", f"flags {flags:#x}")
        if not flags & _NEXT:
            return chain
        if index >= len(table):
            raise QueueFault("next out of range", f"next {index}, table of {len(table)}")
