"""The data path of one vbd in the guest's actor: from the virtqueue to the ring of its backend, and back.

The guest's requests stay its own until a backend can take them: without one, or without room in the pool, they wait in the
virtqueue. What a backend has taken is in the ledger, and goes to its successor when it dies.
"""

import contextlib
import enum
import os
import time
from collections import deque
from dataclasses import dataclass

from domains.frontends.backing import Backing, RingBroken
from domains.frontends.ledger import Entry, Ledger
from domains.virtio.blk import (
    DEVICE_ID_BYTES,
    DISCARD_SEGMENT,
    MAX_DISCARD_SECTORS,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    Request,
    Type,
    parse,
)
from domains.virtio.queue import Segments, SplitQueue
from kernel.abi.ids import Peer
from kernel.abi.io.blkif import MAX_BYTES, SLOTS, Op, RspStatus

__all__ = ["Switch", "Vbd", "VbdStats"]

TURN_REQUESTS = SLOTS
"""Requests posted before other vbds have their turn."""

BATCH, BATCH_BYTES = 8, 65536
"""The other side is told after so many requests or so much data: soon enough to work beside us, seldom enough to be cheap."""

LOOK_AGAIN_S = 0.001
"""How long a guest has to look at what it was given before it is signalled once more."""
PATIENCE, PATIENT_LOOK_S = 20, 0.05
"""After so many signals in a row the guest is busy rather than deaf."""

KEPT_SWITCHES = 1024
"""Switches remembered for `stats`."""

_ONE = (1).to_bytes(8, "little")
_GUEST_STATUS = {status: S_IOERR for status in RspStatus} | {RspStatus.OK: S_OK, RspStatus.UNSUPPORTED: S_UNSUPP}
_STATUS_BYTES = bytes(_GUEST_STATUS[status] for status in sorted(RspStatus))
_IN, _OUT, _READ, _WRITE = int(Type.IN), int(Type.OUT), int(Op.READ), int(Op.WRITE)


class Link(enum.Enum):
    """How the vbd stands to the backend whose ring it uses."""

    NONE = "none"
    SERVING = "serving"
    WITHDRAWN = "withdrawn"
    """It is gone. What it had published may be taken, if its successor's `BackendActive` allows."""
    BROKEN = "broken"
    """It broke the ring's rules. Nothing of it is believed any more."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of backends: responses still taken from the old ring, requests posted again to the new one."""

    peer: Peer
    taken: int
    reposted: int
    outage_s: float
    """From when the old one was known to be lost; 0 for the first."""
    work_s: float
    """What the frontend itself needed for the change."""


@dataclass(frozen=True, slots=True)
class VbdStats:
    """`longest_gap_s`: the longest time without an answer while something was in flight."""

    requests: int
    answers: int
    in_flight: int
    longest_gap_s: float
    resignalled: int
    switches: tuple[Switch, ...]


class Vbd:
    """One vbd. Runs on the data loop's thread alone; `stats` may be asked from any.

    `serve`, `activate` raise RingBroken, the backend's fault, or QueueFault, the guest's; both leave the vbd able to go on:
    after the first with another backend, after the second with another queue.
    """

    def __init__(self, sectors: int, *, read_only: bool, serial: str) -> None:
        self.link = Link.NONE
        self.peer: Peer | None = None
        self.backing: Backing | None = None
        self.queue: SplitQueue | None = None
        self._view = memoryview(b"")
        self._call = -1
        self._sectors = sectors
        self._read_only = read_only
        self._serial = serial.encode()[:DEVICE_ID_BYTES].ljust(DEVICE_ID_BYTES, b"\0")
        self._ledger = Ledger()
        self._orphaned = False
        self._requests = self._answers = self._resignalled = 0
        self._waiting_since = self._lost_at = 0.0
        self._longest_gap_s = self._signalled_at = 0.0
        self._nudges = 0
        self._switches: deque[Switch] = deque(maxlen=KEPT_SWITCHES)

    # The guest's side

    def start_queue(self, queue: SplitQueue, view: memoryview) -> None:
        """The guest has set up its queue in the memory `view`."""
        self.queue, self._view = queue, view

    def stop_queue(self) -> None:
        """The guest's queue is gone. What is in flight is finished for nobody; only then may a new queue's requests go."""
        self.queue, self._view = None, memoryview(b"")
        self._orphaned = self._orphaned or len(self._ledger) > 0

    def set_call(self, descriptor: int) -> None:
        """Signal the guest through `descriptor` from now on, the caller's to close; -1: not at all."""
        self._call = descriptor

    def unseen(self) -> bool:
        """Whether the guest was given something and has not looked."""
        return self.queue is not None and self.queue.unseen()

    def nudge(self) -> float:
        """Signal a guest again that has not looked for a while; seconds until the next time.

        User-Mode Linux can lose an interrupt on its way to idle.
        """
        wait_s = LOOK_AGAIN_S if self._nudges < PATIENCE else PATIENT_LOOK_S
        left_s = self._signalled_at + wait_s - time.monotonic()
        if left_s > 0:
            return left_s
        nudges = self._nudges + 1
        self._resignalled += 1
        self._signal()
        self._nudges = nudges
        return wait_s

    def _signal(self) -> None:
        self._nudges = 0
        self._signalled_at = time.monotonic()
        if self._call >= 0:
            with contextlib.suppress(OSError):
                os.write(self._call, _ONE)

    # The backend's side

    def withdraw(self) -> None:
        """The backend in use is gone."""
        if self.link is Link.SERVING:
            self.link = Link.WITHDRAWN
            self._lost_at = time.monotonic()

    def distrust(self) -> None:
        """The backend in use broke the rules."""
        self.link = Link.BROKEN
        self._lost_at = time.monotonic()

    def activate(self, peer: Peer, backing: Backing, *, take_published: bool) -> None:
        """Use this backend from now on: post to it again, oldest first, what its predecessor has not answered.

        Raises RingBroken, about the *predecessor*, when what it had published is wrong; the change is made all the same.
        """
        began = time.monotonic()
        before, old, link = len(self._ledger), self.backing, self.link
        broken: RingBroken | None = None
        if old is not None and take_published and link is not Link.BROKEN:
            try:
                self._take_responses(old)
            except RingBroken as error:
                broken = error
        taken = before - len(self._ledger)
        if old is not None:
            old.release()
        self.peer, self.backing, self.link = peer, backing, Link.SERVING
        reposted = self._repost(backing)
        now = time.monotonic()
        outage_s = now - self._lost_at if link in (Link.WITHDRAWN, Link.BROKEN) else 0.0
        self._switches.append(Switch(peer, taken, reposted, outage_s, now - began))
        if broken is not None:
            raise broken

    def _repost(self, backing: Backing) -> int:
        """Post the whole ledger to a fresh ring. It fits: it did before."""
        entries = self._ledger.clear()
        if self._orphaned:
            self._orphaned = False
            return 0
        for ident, op, sector, length, segments, status_at, _ in entries:
            place = 0
            if op == _READ:
                place = backing.in_pool.take(length)
            elif op == _WRITE:
                place = backing.out_pool.take(length)
                self._copy_out(backing, segments, place)
            self._ledger.enter((ident, op, sector, length, segments, status_at, place))
            backing.post(ident, op, length, sector, place)
        backing.publish()
        return len(entries)

    # Both

    def serve(self) -> bool:
        """Take what the backend has answered, post what the guest has asked. True when more is left for the next turn."""
        backing = self.backing
        if backing is None or self.link is not Link.SERVING:
            return False
        self._take_responses(backing)
        more = self._post_requests(backing)
        return not backing.park() or more

    def _take_responses(self, backing: Backing) -> None:
        responses = backing.responses(len(self._ledger))
        if not responses:
            return
        now = time.monotonic()
        self._longest_gap_s = max(self._longest_gap_s, now - self._waiting_since)
        self._waiting_since = now
        try:
            for response in responses:
                self._answer(backing, *self._ledger.answered(response))
        finally:
            self._answers += len(responses)
            if self._orphaned and not self._ledger:
                self._orphaned = False
            if self.queue is not None and self.queue.unsignalled:
                self._signal_if_wanted(self.queue)

    def _answer(self, backing: Backing, status: int, entry: Entry) -> None:
        """Give one request back to the guest, and its place back to the pool."""
        ident, op, _, length, segments, status_at, place = entry
        queue, written = self.queue, 1
        if op == _READ:
            if status == 0 and not self._orphaned:
                view, source, at = self._view, backing.in_view, place
                for offset, size in segments:
                    view[offset : offset + size] = source[at : at + size]
                    at += size
                written = length + 1
            backing.in_pool.give_back(place, length)
        elif op == _WRITE:
            backing.out_pool.give_back(place, length)
        if queue is None or self._orphaned:
            return
        self._view[status_at] = _STATUS_BYTES[status]
        queue.publish(ident & 0xFF, written)
        if length > BATCH_BYTES or queue.unsignalled >= BATCH:
            self._signal_if_wanted(queue)

    def _signal_if_wanted(self, queue: SplitQueue) -> None:
        if queue.wants_signal():
            self._signal()

    def _post_requests(self, backing: Backing) -> bool:
        """Post what the guest offers, until there is no more of it or no room. True when the turn's bound was reached."""
        queue = self.queue
        if queue is None or self._orphaned:
            return False
        if not self._ledger:
            self._waiting_since = time.monotonic()
        try:
            for _ in range(TURN_REQUESTS):
                chain = queue.take()
                if chain is None:
                    if queue.park():
                        return False
                    continue
                head, readable, writable = chain
                request = parse(self._view, readable, writable)
                if not self._post(queue, backing, head, request):
                    queue.untake()
                    return False
                if backing.unpublished >= BATCH or request[3] > BATCH_BYTES:
                    backing.publish()
            return True
        finally:
            if backing.unpublished:
                backing.publish()
            if queue.unsignalled:
                self._signal_if_wanted(queue)

    def _post(self, queue: SplitQueue, backing: Backing, head: int, request: Request) -> bool:
        """Post one request, or answer it here. False when there is no room for it yet."""
        kind, sector, segments, length, status_at = request
        ident = self._ledger.ident(head)
        if kind == _IN or kind == _OUT:
            if (
                not 0 < length <= MAX_BYTES or length & 511 or sector + (length >> 9) > self._sectors
                or (kind == _OUT and self._read_only)
            ):  # fmt: skip
                return self._answer_here(queue, head, status_at, S_IOERR)
            pool = backing.out_pool if kind == _OUT else backing.in_pool
            place = pool.take(length)
            if place < 0:
                return False
            if kind == _OUT:
                self._copy_out(backing, segments, place)
            backing.post(ident, kind, length, sector, place)
            self._ledger.entries[head] = (ident, kind, sector, length, segments, status_at, place)
            self._requests += 1
            return True
        return self._post_other(queue, backing, head, ident, request)

    def _copy_out(self, backing: Backing, segments: Segments, place: int) -> None:
        view, target, at = self._view, backing.out_view, place
        for offset, size in segments:
            target[at : at + size] = view[offset : offset + size]
            at += size

    def _post_other(self, queue: SplitQueue, backing: Backing, head: int, ident: int, request: Request) -> bool:
        """The requests that move no data through the pool."""
        kind, _, segments, length, status_at = request
        sector = size = 0
        match kind:
            case Type.FLUSH:
                op = Op.FLUSH
            case Type.DISCARD:
                op = Op.DISCARD
                sector, size, refusal = self._discard(segments, length)
                if refusal != S_OK:
                    return self._answer_here(queue, head, status_at, refusal)
            case Type.GET_ID:
                written = self._write_serial(segments)
                return self._answer_here(queue, head, status_at, S_OK, written)
            case _:
                return self._answer_here(queue, head, status_at, S_UNSUPP)
        backing.post(ident, op, size, sector, 0)
        self._ledger.enter((ident, op, sector, size, (), status_at, 0))
        self._requests += 1
        return True

    def _discard(self, segments: Segments, length: int) -> tuple[int, int, int]:
        """Sector, bytes and status of a discard; the guest's words are read once."""
        if length != DISCARD_SEGMENT.size:
            return 0, 0, S_IOERR
        raw = b"".join(self._view[at : at + size].tobytes() for at, size in segments)
        sector, sectors, flags = DISCARD_SEGMENT.unpack(raw)
        if flags:
            return 0, 0, S_UNSUPP
        if self._read_only or not 0 < sectors <= MAX_DISCARD_SECTORS or sector + sectors > self._sectors:
            return 0, 0, S_IOERR
        return sector, sectors << 9, S_OK

    def _write_serial(self, segments: Segments) -> int:
        written = 0
        for at, size in segments:
            part = self._serial[written : written + size]
            self._view[at : at + len(part)] = part
            written += len(part)
        return written

    def _answer_here(self, queue: SplitQueue, head: int, status_at: int, status: int, written: int = 0) -> bool:
        """Answer without a backend."""
        self._view[status_at] = status
        queue.publish(head, written + 1)
        return True

    def stats(self) -> VbdStats:
        """What has happened so far."""
        return VbdStats(
            self._requests, self._answers, len(self._ledger), self._longest_gap_s, self._resignalled, tuple(self._switches)
        )
