"""From the virtqueue to the ring: what the guest asks is checked, given room in a pool, and posted to the backend."""

from dataclasses import dataclass

from domains.frontends.backing import Backing
from domains.frontends.guest_end import GuestEnd
from domains.frontends.ledger import Ledger
from domains.frontends.pool import PAGE_BYTES
from domains.virtio import blk
from domains.virtio.blk import S_IOERR, S_OK, S_UNSUPP, Request, Type
from domains.virtio.queue import Segments, SplitQueue
from kernel.abi.io.blkif import SLOTS, Op
from kernel.abi.status import KernelBug

__all__ = ["BATCH", "BATCH_BYTES", "Disk", "Poster"]

TURN_REQUESTS = SLOTS
"""Requests posted before other vbds have their turn."""

BATCH, BATCH_BYTES = 8, 65536
"""The other side is told after so many requests or so much data: soon enough to work beside us, seldom enough to be
cheap."""

_READ, _WRITE = int(Op.READ), int(Op.WRITE)
assert (_READ, _WRITE) == (Type.IN, Type.OUT)
_HEADER_AT, _HEADER_BYTES = blk.HEADER.unpack_from, blk.HEADER.size
_FOR_DEVICE, _FOR_DRIVER = 1, 3
"""Flags of a plain buffer's data: to be read by the device, or written (VIRTQ_DESC_F_NEXT, and F_WRITE)."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A vbd as its guest has it. Sectors of 512 bytes."""

    sectors: int
    read_only: bool
    serial: bytes


@dataclass(frozen=True, slots=True)
class _Rest:
    """What is left of a request that is larger than any on the ring, and its whole length."""

    kind: int
    sector: int
    segments: Segments
    length: int
    status_at: int
    whole: int


class Poster:
    """Posts what one vbd's guest asks.

    `blocked`: the next request must wait for room until something is answered. `parts`: what is still to be asked of
    requests that are larger than any on the ring, by virtqueue head.
    """

    def __init__(self, disk: Disk, guest: GuestEnd, ledger: Ledger) -> None:
        self.blocked = False
        self.posted = 0
        self._disk = disk
        self._guest = guest
        self._ledger = ledger
        self.parts: dict[int, _Rest] = {}

    def forget(self) -> None:
        """The guest's queue is gone, and with it all that was only begun."""
        self.parts.clear()

    def post_requests(self, queue: SplitQueue, backing: Backing) -> None:
        """Post what the guest offers, until there is no more of it, or no room, or others must have their turn.

        Raises QueueFault; what was posted before is published all the same.
        """
        view = self._guest.view
        left = TURN_REQUESTS
        try:
            if queue.again and not self._post_again(queue, backing):
                return
            while left > 0:
                left -= self._post_plain(queue, backing, left)
                chain = queue.take()
                if chain is None:
                    return
                head, readable, writable = chain
                self._ledger.check_free(head)
                queue.in_flight.mark(head)
                length = self._post(queue, backing, head, blk.parse(view, readable, writable))
                if length < 0:
                    queue.in_flight.marks[head] = 0
                    queue.untake()
                    self.blocked = True
                    return
                left -= 1
                if length > BATCH_BYTES:
                    backing.publish()
        finally:
            backing.publish()
            self._guest.signal_if_wanted()

    def _post_again(self, queue: SplitQueue, backing: Backing) -> bool:
        """Post what a predecessor of this process had taken, before anything newer. False when there is no room for all
        of it yet."""
        while queue.again:
            head, readable, writable = queue.chain(queue.again[0])
            if self._post(queue, backing, head, blk.parse(self._guest.view, readable, writable)) < 0:
                self.blocked = True
                return False
            queue.again.popleft()
        return True

    def _post_plain(self, queue: SplitQueue, backing: Backing, most: int) -> int:
        """The fast way: reads and writes of at most a page, one after the other. Stops before whatever else it meets.

        How many it has posted.
        """
        take, post, view, target = queue.take_plain, backing.post, self._guest.view, backing.out_view
        entries, sectors, read_only = self._ledger.entries, self._disk.sectors, self._disk.read_only
        incoming, outgoing = backing.in_pool.pages, backing.out_pool.pages
        mark = queue.in_flight.mark
        count = 0
        while count < most:
            plain = take()
            if plain is None:
                break
            head, header_at, header_bytes, data_at, length, direction, status_at, status_bytes = plain
            if header_bytes != _HEADER_BYTES or status_bytes != 1 or length > PAGE_BYTES or length & 511:
                queue.untake()
                break
            kind, _, sector = _HEADER_AT(view, header_at)
            if sector + (length >> 9) > sectors or head in entries:
                queue.untake()
                break
            if kind == _READ and direction == _FOR_DRIVER and incoming:
                place = incoming.pop()
            elif kind == _WRITE and direction == _FOR_DEVICE and outgoing and not read_only:
                place = outgoing.pop()
                target[place : place + length] = view[data_at : data_at + length]
            else:
                queue.untake()
                break
            mark(head)
            ident = post(head, kind, length, sector, place)
            entries[head] = (ident, kind, sector, length, ((data_at, length),), status_at, place)
            count += 1
            if not count % BATCH:
                backing.publish()
        self.posted += count
        return count

    def _post(self, queue: SplitQueue, backing: Backing, head: int, request: Request) -> int:
        """Post one request, or answer it here. Its bytes of data, or -1 when there is no room for it yet."""
        kind, sector, segments, length, status_at = request
        disk = self._disk
        if kind not in (_READ, _WRITE):
            return self._post_other(queue, backing, head, request)
        refused = kind == _WRITE and disk.read_only
        if refused or not length or length & 511 or sector + (length >> 9) > disk.sectors:
            return self._answer_here(queue, head, status_at, S_IOERR)
        most = backing.largest
        if length > most:
            first, rest = _cut(segments, most)
            if not self._post_transfer(backing, head, (kind, sector, first, most, status_at)):
                return -1
            self.parts[head] = _Rest(kind, sector + (most >> 9), rest, length - most, status_at, length)
        elif not self._post_transfer(backing, head, request):
            return -1
        self.posted += 1
        return length

    def _post_transfer(self, backing: Backing, head: int, request: Request) -> bool:
        kind, sector, segments, length, status_at = request
        place = (backing.out_pool if kind == _WRITE else backing.in_pool).take(length)
        if place < 0:
            return False
        if kind == _WRITE:
            backing.fill(place, self._guest.view, segments)
        ident = backing.post(head, kind, length, sector, place)
        self._ledger.enter((ident, kind, sector, length, segments, status_at, place))
        return True

    def post_part(self, backing: Backing, head: int) -> int:
        """A part of the request at `head` is done: post the next one, in the room that it had.

        0, or the length of the whole when that was the last part.
        """
        rest = self.parts.pop(head)
        if not rest.length:
            return rest.whole
        length = min(rest.length, backing.largest)
        part, after = _cut(rest.segments, backing.largest)
        if not self._post_transfer(backing, head, (rest.kind, rest.sector, part, length, rest.status_at)):
            raise KernelBug(f"no room for a part of {length} bytes where one has just been freed")
        sector = rest.sector + (length >> 9)
        self.parts[head] = _Rest(rest.kind, sector, after, rest.length - length, rest.status_at, rest.whole)
        return 0

    def _post_other(self, queue: SplitQueue, backing: Backing, head: int, request: Request) -> int:
        """The requests that move no data through the pool."""
        kind, _, segments, length, status_at = request
        sector = size = 0
        match kind:
            case Type.FLUSH:
                op = Op.FLUSH
            case Type.DISCARD | Type.WRITE_ZEROES:
                sector, size, unmap, status = blk.parse_range(self._guest.view, kind, segments, length)
                op = Op.DISCARD if kind == Type.DISCARD else Op.ZERO_UNMAP if unmap else Op.WRITE_ZEROES
                if status == S_OK and (self._disk.read_only or sector + (size >> 9) > self._disk.sectors):
                    status = S_IOERR
                if status != S_OK:
                    return self._answer_here(queue, head, status_at, status)
            case Type.GET_ID:
                written = blk.write_serial(self._guest.view, segments, self._disk.serial)
                return self._answer_here(queue, head, status_at, S_OK, written)
            case _:
                return self._answer_here(queue, head, status_at, S_UNSUPP)
        ident = backing.post(head, op, size, sector, 0)
        self._ledger.enter((ident, op, sector, size, (), status_at, 0))
        self.posted += 1
        return 0

    def _answer_here(self, queue: SplitQueue, head: int, status_at: int, status: int, written: int = 0) -> int:
        """Answer without a backend. 0: it moves no data."""
        self._guest.view[status_at] = status
        queue.publish(head, written + 1)
        return 0

    def repost(self, backing: Backing) -> int:
        """Post the whole ledger to a fresh ring, oldest first. How much. It fits: it did before."""
        entries = self._ledger.clear()
        for ident, op, sector, length, segments, status_at, _ in entries:
            head = ident & 0xFF
            if op in (_READ, _WRITE):
                self._post_transfer(backing, head, (op, sector, segments, length, status_at))
            else:
                self._ledger.enter((backing.post(head, op, length, sector, 0), op, sector, length, (), status_at, 0))
        backing.publish()
        return len(entries)


def _cut(segments: Segments, most: int) -> tuple[Segments, Segments]:
    """The first `most` bytes of the segments, and what is after them."""
    part: list[tuple[int, int]] = []
    left = most
    for number, (at, size) in enumerate(segments):
        if size >= left:
            part.append((at, left))
            cut_off = ((at + left, size - left),) if size > left else ()
            return tuple(part), (*cut_off, *segments[number + 1 :])
        part.append((at, size))
        left -= size
    return tuple(part), ()
