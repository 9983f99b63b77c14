"""The backend's end of the block ring."""

import socket

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
)
from kernel.abi.io.ring import COUNT_MASK, check_sealed, make_fence, passes

__all__ = ["BackRing"]

_RING = b"\x01"
_DOORBELL_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_UNPACK = REQUEST.unpack_from


class BackRing:
    """Requests in, responses out. On one thread at a time."""

    def __init__(self, out_fd: int, in_fd: int, doorbell: socket.socket) -> None:
        """Map both grants; the descriptors stay the caller's, the doorbell is ours. Raises Unsealed."""
        self.out_view = check_sealed(out_fd, RING_BYTES, writable=False)
        self.in_view = check_sealed(in_fd, RING_BYTES, writable=True)
        self.doorbell = doorbell
        self._out_words = self.out_view[:REQUESTS_AT].cast("I")
        self._in_words = self.in_view[:RESPONSES_AT].cast("I")
        self._responses = self.in_view[RESPONSES_AT : RESPONSES_AT + 4 * SLOTS].cast("I")
        self._fence = make_fence()
        self._taken = self._answered = self._published = 0
        self._last_response = 0xFFFF

    def requests(self) -> int:
        """How many requests are published and not taken. Raises FrontendBroken for more than can be."""
        waiting = (self._out_words[PROD] - self._taken) & COUNT_MASK
        if waiting > SLOTS - ((self._taken - self._answered) & COUNT_MASK):
            raise FrontendBroken(
                "req_prod runs ahead", f"{waiting} waiting, taken {self._taken}, answered {self._answered}"
            )
        return waiting

    def take(self) -> Fields:
        """The next request: a copy, which its writer can no longer change. Only after `requests` has counted it."""
        taken = self._taken
        self._taken = (taken + 1) & COUNT_MASK
        fields: Fields = _UNPACK(self.out_view, REQUESTS_AT + (taken & SLOT_MASK) * REQUEST_BYTES)
        return fields

    def answer(self, ident: int, status: int) -> None:
        """Fill the next response. The frontend sees it after `publish`."""
        answered = self._answered
        self._responses[answered & SLOT_MASK] = self._last_response = ident | status << 16
        self._answered = (answered + 1) & COUNT_MASK

    @property
    def unpublished(self) -> int:
        """Responses filled since the last `publish`."""
        return (self._answered - self._published) & COUNT_MASK

    def publish(self) -> bool:
        """Let the frontend see what was answered. True when it asked for a ring."""
        before, answered = self._published, self._answered
        self._in_words[PROD] = self._published = answered
        self._fence()
        return passes(answered, before, self._out_words[EVENT])

    def ring_doorbell(self) -> None:
        """Wake the frontend. A full doorbell has been rung already; a dead one is told by the hypervisor."""
        try:
            self.doorbell.send(_RING, _DOORBELL_FLAGS)
        except OSError:
            return

    def drain_doorbell(self) -> bool:
        """Take one ring of the doorbell. False when the other end is gone."""
        try:
            return bool(self.doorbell.recv(16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

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
            self._responses[self._answered & SLOT_MASK] = self._last_response
            self._answered = self._published = (self._answered + 1) & COUNT_MASK
            self._in_words[PROD] = self._answered
        self.ring_doorbell()

    def close(self) -> None:
        """Unmap, and hang up the doorbell."""
        self.doorbell.close()
        for view in (self._out_words, self._in_words, self._responses, self.out_view, self.in_view):
            view.release()
