"""What a vbd has in flight: enough to answer the guest, and to ask again of another backend.

No more than `SLOTS` of a vbd are in flight, for its queue has no more heads.
"""

from domains.frontends.backing import RingBroken
from domains.virtio.queue import MAX_SIZE, QueueFault, Segments
from kernel.abi.io.blkif import SLOTS, RspStatus

__all__ = ["Entry", "Ledger"]

assert MAX_SIZE == SLOTS
_HEAD_MASK = SLOTS - 1
_LAST_RESPONSE = max(RspStatus) << 16 | 0xFFFF

Entry = tuple[int, int, int, int, Segments, int, int]
"""`ident, op, sector, length, segments, status_at, place`: what was asked, where the guest's data and status byte are,
where in the pool the data is."""

_NO_ENTRY: Entry = (-1, 0, 0, 0, (), 0, 0)


class Ledger:
    """Requests in flight by virtqueue head, oldest first."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def check_free(self, head: int) -> None:
        """Raises QueueFault when the guest offers a buffer that we still hold."""
        if head in self.entries:
            raise QueueFault("buffer offered twice", f"head {head} is in flight")

    def enter(self, entry: Entry) -> None:
        """The request is posted."""
        self.entries[entry[0] & _HEAD_MASK] = entry

    def strike_out(self, response: int) -> Entry:
        """The entry that a response word answers, no longer in flight.

        Raises RingBroken for a response never asked for. Then nothing is struck out, though its head may be in flight
        again for another request: that one is the successor's to answer.
        """
        ident = response & 0xFFFF
        head = ident & _HEAD_MASK
        entry = self.entries.get(head, _NO_ENTRY)
        if entry[0] != ident:
            raise RingBroken("response to no request", f"id {ident:#x}, status {response >> 16}")
        if response > _LAST_RESPONSE:
            raise RingBroken("unknown status", f"id {ident:#x}, status {response >> 16}")
        del self.entries[head]
        return entry

    def clear(self) -> list[Entry]:
        """Forget everything; what it was, oldest first."""
        entries = list(self.entries.values())
        self.entries.clear()
        return entries
