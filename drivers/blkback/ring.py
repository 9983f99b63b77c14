"""The backend's end of the block ring."""

import os
import socket

from domains.runtime.doorbell import Doorbell
from drivers.blkback.backend import Fields, FrontendBroken
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
    SMALL_RING_BYTES,
)
from kernel.abi.io.ring import COUNT_MASK, Unsealed, check_sealed, make_fence, passes

__all__ = ["BackRing"]

_UNPACK_ALL = REQUEST.iter_unpack
_REQUESTS_END = REQUESTS_AT + SLOTS * REQUEST_BYTES


class BackRing:
    """Requests in, responses out. On one thread at a time."""

    def __init__(self, out_fd: int, in_fd: int, doorbell: socket.socket) -> None:
        """Map both grants; the descriptors stay the caller's, the doorbell is ours. Raises Unsealed."""
        self.size_bytes = os.fstat(out_fd).st_size
        if self.size_bytes not in (RING_BYTES, SMALL_RING_BYTES):
            raise Unsealed(f"{self.size_bytes} bytes, not {RING_BYTES} nor {SMALL_RING_BYTES}")
        self.out_view = check_sealed(out_fd, self.size_bytes, writable=False)
        self.in_view = check_sealed(in_fd, self.size_bytes, writable=True)
        self.doorbell = Doorbell(doorbell)
        self._out_words = self.out_view[:REQUESTS_AT].cast("I")
        self._in_words = self.in_view[:RESPONSES_AT].cast("I")
        self._responses = self.in_view[RESPONSES_AT : RESPONSES_AT + 4 * SLOTS].cast("I")
        self._fence = make_fence()
        self._taken = self._answered = 0

    def requests(self) -> int:
        """How many requests are published and not taken. Raises FrontendBroken for more than can be."""
        waiting = (self._out_words[PROD] - self._taken) & COUNT_MASK
        if waiting > SLOTS - ((self._taken - self._answered) & COUNT_MASK):
            raise FrontendBroken(
                "req_prod runs ahead", f"{waiting} waiting, taken {self._taken}, answered {self._answered}"
            )
        return waiting

    def take(self, most: int) -> list[Fields]:
        """The next requests, up to so many: copies, which their writer can no longer change. Raises FrontendBroken."""
        taken = self._taken
        count = min(self.requests(), most)
        self._taken = (taken + count) & COUNT_MASK
        first = taken & SLOT_MASK
        start, stop = REQUESTS_AT + first * REQUEST_BYTES, REQUESTS_AT + (first + count) * REQUEST_BYTES
        if stop <= _REQUESTS_END:
            return list(_UNPACK_ALL(self.out_view[start:stop]))
        wrapped = stop - _REQUESTS_END + REQUESTS_AT
        return [*_UNPACK_ALL(self.out_view[start:_REQUESTS_END]), *_UNPACK_ALL(self.out_view[REQUESTS_AT:wrapped])]

    def publish(self, words: list[int]) -> bool:
        """Give responses, each `id | status << 16`. True when the frontend asked for a ring."""
        before = self._answered
        for place, word in enumerate(words, before):
            self._responses[place & SLOT_MASK] = word
        self._in_words[PROD] = self._answered = answered = (before + len(words)) & COUNT_MASK
        self._fence()
        return passes(answered, before, self._out_words[EVENT])

    def park(self) -> bool:
        """Ask for a ring at the next request. False when one has come meanwhile: take it first."""
        self._in_words[EVENT] = (self._taken + 1) & COUNT_MASK
        self._fence()
        return self._out_words[PROD] == self._taken

    def lie(self, *, index: bool) -> None:
        """Break the rules, for whoever tests the other side: run `rsp_prod` ahead, or give the last response twice."""
        if index:
            self._in_words[PROD] = (self._answered + 5 * SLOTS) & COUNT_MASK
        else:
            last = self._responses[(self._answered - 1) & SLOT_MASK]
            self.publish([last if self._answered else 0xFFFF])
        self.doorbell.ring()

    def close(self) -> None:
        """Unmap, and hang up the doorbell."""
        self.doorbell.close()
        for view in (self._out_words, self._in_words, self._responses, self.out_view, self.in_view):
            view.release()
