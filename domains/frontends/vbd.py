"""The data path of one vbd in the guest's actor: from the virtqueue to the ring of its backend, and back.

The guest's requests stay its own until a backend can take them: without one, or without room in the pool, they wait in
the virtqueue. What a backend has taken is in the ledger, and goes to its successor when it dies.
"""

import enum
from collections import deque
from dataclasses import dataclass
from time import monotonic

from domains.frontends.backing import Backing, RingBroken
from domains.frontends.guest_end import GuestEnd
from domains.frontends.ledger import Ledger
from domains.virtio import blk
from domains.virtio.blk import S_IOERR, S_OK, S_UNSUPP, Request, Type
from domains.virtio.queue import SplitQueue
from kernel.abi.ids import Peer
from kernel.abi.io.blkif import MAX_BYTES, SLOTS, Op, RspStatus

__all__ = ["Link", "Switch", "Vbd", "VbdStats"]

TURN_REQUESTS = SLOTS
"""Requests posted before other vbds have their turn."""

BATCH, BATCH_BYTES = 8, 65536
"""The other side is told after so many requests or so much data: soon enough to work beside us, seldom enough to be
cheap."""

KEPT_SWITCHES = 1024
"""Switches remembered for `stats`."""

_GUEST_STATUS = {status: S_IOERR for status in RspStatus} | {RspStatus.OK: S_OK, RspStatus.UNSUPPORTED: S_UNSUPP}
_STATUS_BYTES = bytes(_GUEST_STATUS[status] for status in sorted(RspStatus))
_READ, _WRITE, _OK = int(Op.READ), int(Op.WRITE), int(RspStatus.OK)
assert (_READ, _WRITE) == (Type.IN, Type.OUT)


class Link(enum.Enum):
    """How the vbd stands to the backend whose ring it uses."""

    NONE = "none"
    SERVING = "serving"
    WITHDRAWN = "withdrawn"
    """It is gone. What it had published may be taken, if its successor's `BackendActive` allows."""
    BROKEN = "broken"
    """It broke the ring's rules. Nothing of it is believed any more."""


_SERVING = Link.SERVING


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

    `serve` raises RingBroken, the backend's fault, or QueueFault, the guest's. Both leave the vbd able to go on: after
    the first with another backend, after the second with another queue.
    """

    def __init__(self, sectors: int, *, read_only: bool, serial: str) -> None:
        self.guest = GuestEnd()
        self.link = Link.NONE
        self.peer: Peer | None = None
        self.backing: Backing | None = None
        self._sectors = sectors
        self._read_only = read_only
        self._serial = serial.encode()
        self._ledger = Ledger()
        self._orphaned = False
        self._blocked = False
        self._requests = self._answers = 0
        self._waiting_since = self._lost_at = self._longest_gap_s = 0.0
        self._switches: deque[Switch] = deque(maxlen=KEPT_SWITCHES)

    def stop_queue(self) -> None:
        """The guest's queue is gone. What is in flight ends for nobody, and before that nothing new is posted."""
        self.guest.stop()
        self._orphaned = self._blocked = self._orphaned or len(self._ledger) > 0

    def withdraw(self) -> None:
        """The backend in use is gone."""
        if self.link is _SERVING:
            self.link = Link.WITHDRAWN
            self._lost_at = monotonic()

    def distrust(self) -> None:
        """The backend in use broke the rules."""
        self.link = Link.BROKEN
        self._lost_at = monotonic()

    def activate(
        self, peer: Peer, backing: Backing, *, take_published: bool
    ) -> tuple[Backing | None, RingBroken | None]:
        """Use this backend from now on: post to it again, oldest first, what its predecessor has not answered.

        Returns the predecessor's ring, for the caller to release when there is time, and what was wrong with what it
        had published: nothing more of it was taken then.
        """
        began = monotonic()
        before, old, link = len(self._ledger), self.backing, self.link
        broken: RingBroken | None = None
        if old is not None and take_published and link is not Link.BROKEN:
            try:
                self._take_responses(old)
            except RingBroken as error:
                broken = error
        taken = before - len(self._ledger)
        self.peer, self.backing, self.link = peer, backing, _SERVING
        reposted = self._repost(backing)
        now = monotonic()
        outage_s = now - self._lost_at if link in (Link.WITHDRAWN, Link.BROKEN) else 0.0
        self._switches.append(Switch(peer, taken, reposted, outage_s, now - began))
        return old, broken

    def _repost(self, backing: Backing) -> int:
        """Post the whole ledger to a fresh ring. It fits: it did before."""
        entries = self._ledger.clear()
        orphaned, self._orphaned, self._blocked = self._orphaned, False, False
        if orphaned:
            return 0
        for ident, op, sector, length, segments, status_at, _ in entries:
            place = 0
            if op == _READ:
                place = backing.in_pool.take(length)
            elif op == _WRITE:
                place = backing.out_pool.take(length)
                backing.fill(place, self.guest.view, segments)
            self._ledger.enter((ident, op, sector, length, segments, status_at, place))
            backing.post(ident, op, length, sector, place)
        backing.publish()
        return len(entries)

    def serve(self) -> bool:
        """Take what the backend has answered, post what the guest has asked. False when there was nothing."""
        backing = self.backing
        if backing is None or self.link is not _SERVING:
            return False
        found = backing.has_responses()
        if found:
            self._take_responses(backing)
        queue = self.guest.queue
        if queue is not None and not self._blocked and queue.offers():
            self._post_requests(queue, backing)
            return True
        return found

    def park(self) -> bool:
        """Ask guest and backend for a ring at what comes next. False when something has come."""
        backing, queue = self.backing, self.guest.queue
        if backing is None or self.link is not _SERVING:
            return True
        if queue is None or self._blocked:
            return backing.park()
        return backing.park() and queue.park()

    def _take_responses(self, backing: Backing) -> None:
        """Everything that the backend has published. Then there is room again for what the guest asks next."""
        entries = self._ledger.entries
        responses = backing.responses(len(entries))
        if not responses:
            return
        now = monotonic()
        if now - self._waiting_since > self._longest_gap_s:
            self._longest_gap_s = now - self._waiting_since
        self._waiting_since = now
        self._answers += len(responses)
        try:
            self._answer(backing, responses)
        finally:
            self._blocked = self._orphaned = self._orphaned and len(entries) > 0
            self.guest.signal_if_wanted()

    def _answer(self, backing: Backing, responses: list[int]) -> None:
        """Give requests back to the guest, and their places back to the pools."""
        strike_out, view, queue = self._ledger.strike_out, self.guest.view, self.guest.queue
        publish = None if queue is None or self._orphaned else queue.publish
        incoming, give_in, give_out = backing.in_view, backing.in_pool.give_back, backing.out_pool.give_back
        for response in responses:
            ident, op, _, length, segments, status_at, place = strike_out(response)
            written = 1
            if op == _READ:
                give_in(place, length)
                if publish and not response >> 16:
                    written = length + 1
                    for offset, size in segments:
                        view[offset : offset + size] = incoming[place : place + size]
                        place += size
            elif op == _WRITE:
                give_out(place, length)
            if publish:
                view[status_at] = _STATUS_BYTES[response >> 16]
                publish(ident & 0xFF, written)
                if length > BATCH_BYTES:
                    self.guest.signal_if_wanted()

    def _post_requests(self, queue: SplitQueue, backing: Backing) -> None:
        """Post what the guest offers, until there is no more of it, or no room, or others must have their turn."""
        if not self._ledger.entries:
            self._waiting_since = monotonic()
        take, parse, view, post = queue.take, blk.parse, self.guest.view, self._post
        unpublished = 0
        try:
            for _ in range(TURN_REQUESTS):
                chain = take()
                if chain is None:
                    return
                head, readable, writable = chain
                length = post(queue, backing, head, parse(view, readable, writable))
                if length < 0:
                    queue.untake()
                    self._blocked = True
                    return
                unpublished += 1
                if unpublished == BATCH or length > BATCH_BYTES:
                    backing.publish()
                    unpublished = 0
        finally:
            backing.publish()
            self.guest.signal_if_wanted()

    def _post(self, queue: SplitQueue, backing: Backing, head: int, request: Request) -> int:
        """Post one request, or answer it here. Its bytes of data, or -1 when there is no room for it yet."""
        kind, sector, segments, length, status_at = request
        if kind > _WRITE:
            return self._post_other(queue, backing, head, request)
        if not 0 < length <= MAX_BYTES or length & 511 or sector + (length >> 9) > self._sectors:
            return self._answer_here(queue, head, status_at, S_IOERR)
        if kind == _READ:
            place = backing.in_pool.take(length)
        elif self._read_only:
            return self._answer_here(queue, head, status_at, S_IOERR)
        else:
            place = backing.out_pool.take(length)
            if place > 0:
                backing.fill(place, self.guest.view, segments)
        if place < 0:
            return -1
        ident = self._ledger.ident(head)
        backing.post(ident, kind, length, sector, place)
        self._ledger.entries[head] = (ident, kind, sector, length, segments, status_at, place)
        self._requests += 1
        return length

    def _post_other(self, queue: SplitQueue, backing: Backing, head: int, request: Request) -> int:
        """The requests that move no data through the pool."""
        kind, _, segments, length, status_at = request
        sector = size = 0
        match kind:
            case Type.FLUSH:
                op = Op.FLUSH
            case Type.DISCARD:
                op = Op.DISCARD
                sector, size, status = blk.discarded(self.guest.view, segments, length)
                if status == S_OK and (self._read_only or sector + (size >> 9) > self._sectors):
                    status = S_IOERR
                if status != S_OK:
                    return self._answer_here(queue, head, status_at, status)
            case Type.GET_ID:
                written = blk.write_serial(self.guest.view, segments, self._serial)
                return self._answer_here(queue, head, status_at, S_OK, written)
            case _:
                return self._answer_here(queue, head, status_at, S_UNSUPP)
        ident = self._ledger.ident(head)
        backing.post(ident, op, size, sector, 0)
        self._ledger.enter((ident, op, sector, size, (), status_at, 0))
        self._requests += 1
        return 0

    def _answer_here(self, queue: SplitQueue, head: int, status_at: int, status: int, written: int = 0) -> int:
        """Answer without a backend. 0: it moves no data."""
        self._ledger.ident(head)
        self.guest.view[status_at] = status
        queue.publish(head, written + 1)
        return 0

    def stats(self) -> VbdStats:
        """What has happened so far."""
        return VbdStats(
            requests=self._requests,
            answers=self._answers,
            in_flight=len(self._ledger),
            longest_gap_s=self._longest_gap_s,
            resignalled=self.guest.resignalled,
            switches=tuple(self._switches),
        )
