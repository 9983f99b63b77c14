"""A frontend's end of the block ring, one for each backend incarnation: granted memory, its pools, its indices."""

import os
import socket

from domains.frontends.pool import Pool
from domains.runtime.doorbell import Doorbell
from domains.virtio.queue import Segments
from kernel.abi.io.blkif import (
    EVENT,
    PROD,
    REQUEST,
    REQUEST_BYTES,
    REQUESTS_AT,
    RESPONSES_AT,
    RING_BYTES,
    SLOT_MASK,
    SLOTS,
)
from kernel.abi.io.ring import COUNT_MASK, Sealed, make_fence, passes

__all__ = ["Backing", "RingBroken"]

_PACK = REQUEST.pack_into


class RingBroken(Exception):
    """The backend broke the ring's rules. `evidence` is what was found, in words."""

    def __init__(self, what: str, evidence: str) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


class Backing:
    """Ring and pools for one backend incarnation. Not for two threads at once: the maker hands it to the loop.
    `largest`: data of one request at most.

    `out_fd` and `in_fd` are to be granted, the first to read, the second to read and write; `close_descriptors` then.
    """

    def __init__(self, ring_bytes: int) -> None:
        self._out = Sealed("blkif-out", ring_bytes, read_only_to_others=True)
        self._in = Sealed("blkif-in", ring_bytes, read_only_to_others=False)
        self.out_fd, self.in_fd = self._out.descriptor, self._in.descriptor
        self.out_view, self.in_view = self._out.view, self._in.view
        self._out_words = self.out_view[:REQUESTS_AT].cast("I")
        self._in_words = self.in_view[:RESPONSES_AT].cast("I")
        self._responses = self.in_view[RESPONSES_AT : RESPONSES_AT + 4 * SLOTS].cast("I")
        self.out_pool, self.in_pool = Pool(ring_bytes), Pool(ring_bytes)
        self.largest = self.out_pool.largest
        self.doorbell: Doorbell | None = None
        self._fence = make_fence()
        self._posted = self._published = self._taken = 0
        self._out_words[EVENT] = 1

    @classmethod
    def create(cls, ring_bytes: int = RING_BYTES) -> "Backing":
        """A fresh ring, all its memory there. Takes milliseconds: have one to spare. Raises OSError without memory.

        All rings of a vbd have one size: what one held fits its successor.
        """
        return cls(ring_bytes)

    def attach_doorbell(self, doorbell: socket.socket) -> None:
        """Take the doorbell to the backend, and ring it: something may have been posted before there was one."""
        self.doorbell = Doorbell(doorbell)
        self.ring_doorbell()

    def post(self, head: int, op: int, length: int, sector: int, place: int) -> int:
        """Fill the next slot; the backend sees it after `publish`. The caller has no more than `SLOTS` in flight.

        Returns the request's id on this ring: its virtqueue head, and above it the slot. Heads are used again at once,
        so that without the slot a response given twice would look like the answer to the next request.
        """
        posted = self._posted
        slot = posted & SLOT_MASK
        ident = head | slot << 8
        _PACK(self.out_view, REQUESTS_AT + slot * REQUEST_BYTES, ident, op, 0, length, sector, place)
        self._posted = (posted + 1) & COUNT_MASK
        return ident

    def fill(self, place: int, view: memoryview, segments: Segments) -> None:
        """Copy a request's data from the guest's memory to its place."""
        target = self.out_view
        for offset, size in segments:
            target[place : place + size] = view[offset : offset + size]
            place += size

    def publish(self) -> None:
        """Let the backend see what was posted, and ring if it asked for that."""
        before, posted = self._published, self._posted
        if before == posted:
            return
        self._out_words[PROD] = self._published = posted
        self._fence()
        if passes(posted, before, self._in_words[EVENT]):
            self.ring_doorbell()

    def ring_doorbell(self) -> None:
        """Wake the backend, once there is a doorbell to it."""
        if self.doorbell is not None:
            self.doorbell.ring()

    def has_responses(self) -> bool:
        """Whether something is published and not taken. Where not, the backend will ring at the next response."""
        return self._in_words[PROD] != self._taken

    def responses(self, in_flight: int) -> list[int]:
        """Response words published and not yet taken; they are taken by this. Raises RingBroken.

        `in_flight` requests are posted and unanswered: more responses than that cannot be.
        """
        taken, published = self._taken, self._in_words[PROD]
        count = (published - taken) & COUNT_MASK
        if count > in_flight:
            raise RingBroken("rsp_prod runs ahead", f"rsp_prod {published}, taken {taken}, in flight {in_flight}")
        self._taken = published
        first, last = taken & SLOT_MASK, published & SLOT_MASK
        if first < last:
            return self._responses[first:last].tolist()
        return self._responses[first:].tolist() + self._responses[:last].tolist() if count else []

    def park(self) -> bool:
        """Ask for a ring at the next response. False when one has come meanwhile: take it first."""
        self._out_words[EVENT] = (self._taken + 1) & COUNT_MASK
        self._fence()
        return self._in_words[PROD] == self._taken

    def close_descriptors(self) -> None:
        """Both are granted: only the mapping is still needed."""
        for descriptor in (self.out_fd, self.in_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self.out_fd = self.in_fd = -1

    def release(self) -> None:
        """Give everything back. The peer keeps what it has mapped."""
        self.close_descriptors()
        if self.doorbell is not None:
            self.doorbell.close()
        for view in (self._out_words, self._in_words, self._responses):
            view.release()
        self._out.unmap()
        self._in.unmap()
