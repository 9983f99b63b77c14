"""What a program asks of one disk, in the form in which a vbd takes it from any guest: as a virtqueue would have it.

The data lies in memory of this process alone, where a PV guest has its own. It is copied from there to the granted pool
when the request is posted, and posted again from there to the successor of a backend that died.
"""

import mmap
from collections import deque

import trio

from domains.frontends.pool import PAGE_BYTES, Pool
from domains.virtio.blk import HEADER, MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, RANGE, Type
from domains.virtio.in_flight import InFlight
from domains.virtio.queue import Chain, Plain
from kernel.abi.io.blkif import MAX_BYTES, POOL_AT, RING_BYTES, SLOTS

__all__ = ["MAX_DISCARD_BYTES", "MAX_TRANSFER_BYTES", "MAX_ZEROES_BYTES", "Request", "Requests"]

MAX_TRANSFER_BYTES = MAX_BYTES
MAX_DISCARD_BYTES, MAX_ZEROES_BYTES = MAX_DISCARD_SECTORS * 512, MAX_ZEROES_SECTORS * 512

_SLOT_BYTES = 64
assert SLOTS * _SLOT_BYTES <= POOL_AT
_RANGE_AT, _STATUS_AT = 32, 56
"""In a slot: the header first, then the range that is to be discarded or zeroed, then the status byte."""

_HEADER_BYTES, _RANGE_BYTES = HEADER.size, RANGE.size
_RANGED = (Type.DISCARD, Type.WRITE_ZEROES)
_FOR_DEVICE, _FOR_DRIVER = 1, 3
"""VIRTQ_DESC_F_NEXT, and F_WRITE."""


class Request:
    """One request. `done` is set when it is answered; `status` is the virtio status byte then."""

    __slots__ = ("done", "head", "kept", "kind", "length", "place", "status")

    def __init__(self, kind: int, head: int, place: int, length: int) -> None:
        self.kind = kind
        self.head = head
        self.place = place
        self.length = length
        self.status = 0xFF
        self.kept = True
        """Somebody waits for it. What nobody waits for is given back when it is answered."""
        self.done = trio.Event()


class Requests:
    """A queue (`frontends.guest_end.Queue`) of `SLOTS` requests. `view` is the memory that its places are in."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, RING_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.in_flight = InFlight()
        self.again: deque[int] = deque()
        self._pool = Pool(RING_BYTES)
        self._heads = list(range(SLOTS))
        self._offered: deque[int] = deque()
        self._last = 0
        self._requests: dict[int, Request] = {}
        self._waiting = 0
        self._turn = trio.StrictFIFOLock()
        self._freed = trio.Event()

    async def reserve(self, kind: int, length: int) -> Request:
        """Room for a request with `length` bytes of data, at most `MAX_TRANSFER_BYTES`. Waits, in order, while there
        is none."""
        request = None if self._waiting else self._reserve(kind, length)
        if request is not None:
            return request
        self._waiting += 1
        try:
            async with self._turn:
                while (request := self._reserve(kind, length)) is None:
                    self._freed = trio.Event()
                    await self._freed.wait()
                return request
        finally:
            self._waiting -= 1

    def _reserve(self, kind: int, length: int) -> Request | None:
        if not self._heads:
            return None
        place = self._pool.take(length) if length else 0
        if place < 0:
            return None
        return Request(kind, self._heads.pop(), place, length)

    def offer(self, request: Request, sector: int, sectors: int = 0, flags: int = 0) -> None:
        """Ask it. Its data, if it has any to be written, is in its place. `sectors` and `flags` are a range's."""
        at = request.head * _SLOT_BYTES
        HEADER.pack_into(self.view, at, request.kind, 0, 0 if request.kind in _RANGED else sector)
        if request.kind in _RANGED:
            RANGE.pack_into(self.view, at + _RANGE_AT, sector, sectors, flags)
        self._requests[request.head] = request
        self._offered.append(request.head)

    def leave(self, request: Request) -> None:
        """Nobody waits for it any more."""
        request.kept = False
        if request.done.is_set():
            self._give_back(request)

    def _give_back(self, request: Request) -> None:
        if request.length:
            self._pool.give_back(request.place, request.length)
        self._heads.append(request.head)
        self._freed.set()

    def offers(self) -> bool:
        return bool(self._offered)

    def take_plain(self) -> Plain | None:
        if not self._offered:
            return None
        request = self._requests[self._offered[0]]
        length = request.length
        if not 0 < length <= PAGE_BYTES:
            return None
        self._last = self._offered.popleft()
        at = self._last * _SLOT_BYTES
        direction = _FOR_DEVICE if request.kind == Type.OUT else _FOR_DRIVER
        return request.head, at, _HEADER_BYTES, request.place, length, direction, at + _STATUS_AT, 1

    def take(self) -> Chain | None:
        if not self._offered:
            return None
        self._last = self._offered.popleft()
        return self.chain(self._last)

    def chain(self, head: int) -> Chain:
        request = self._requests[head]
        at = head * _SLOT_BYTES
        header, status = (at, _HEADER_BYTES), (at + _STATUS_AT, 1)
        data = (request.place, request.length)
        match request.kind:
            case Type.IN:
                return head, (header,), (data, status)
            case Type.OUT:
                return head, (header, data), (status,)
            case Type.DISCARD | Type.WRITE_ZEROES:
                return head, (header, (at + _RANGE_AT, _RANGE_BYTES)), (status,)
        return head, (header,), (status,)

    def untake(self) -> None:
        self._offered.appendleft(self._last)

    def park(self) -> bool:
        return not self._offered

    def publish(self, head: int, written: int) -> None:
        self.in_flight.marks[head] = 0
        request = self._requests.pop(head)
        request.status = self.view[head * _SLOT_BYTES + _STATUS_AT]
        request.done.set()
        if not request.kept:
            self._give_back(request)

    def wants_signal(self) -> bool:
        return False

    def unseen(self) -> bool:
        return False
