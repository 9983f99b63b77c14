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
from domains.frontends.posting import BATCH_BYTES, Disk, Poster
from domains.virtio.blk import S_IOERR, S_OK, S_UNSUPP
from kernel.abi.ids import Peer
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["Link", "Switch", "Vbd", "VbdStats"]

KEPT_SWITCHES = 1024
"""Switches remembered for `stats`."""

_GUEST_STATUS = {status: S_IOERR for status in RspStatus} | {RspStatus.OK: S_OK, RspStatus.UNSUPPORTED: S_UNSUPP}
_STATUS_BYTES = bytes(_GUEST_STATUS[status] for status in sorted(RspStatus))
_READ, _WRITE = int(Op.READ), int(Op.WRITE)


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
        self._ledger = Ledger()
        self._poster = Poster(Disk(sectors, read_only, serial.encode()), self.guest, self._ledger)
        self._orphaned = False
        self._answers = 0
        self._waiting_since = self._lost_at = self._longest_gap_s = 0.0
        self._switches: deque[Switch] = deque(maxlen=KEPT_SWITCHES)

    def stop_queue(self) -> None:
        """The guest's queue is gone. What is in flight ends for nobody, and before that nothing new is posted."""
        self.guest.stop()
        self._poster.forget()
        self._orphaned = self._poster.blocked = self._orphaned or len(self._ledger) > 0

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
        self._poster.blocked = False
        if self._orphaned:
            self._orphaned = False
            self._ledger.clear()
            return 0
        return self._poster.repost(backing)

    def serve(self) -> bool:
        """Take what the backend has answered, post what the guest has asked. False when there was nothing."""
        backing = self.backing
        if backing is None or self.link is not _SERVING:
            return False
        found = backing.has_responses()
        if found:
            self._take_responses(backing)
        queue = self.guest.queue
        if queue is not None and not self._poster.blocked and queue.offers():
            if not self._ledger.entries:
                self._waiting_since = monotonic()
            self._poster.post_requests(queue, backing)
            return True
        return found

    def park(self) -> bool:
        """Ask guest and backend for a ring at what comes next. False when something has come."""
        backing, queue = self.backing, self.guest.queue
        if backing is None or self.link is not _SERVING:
            return True
        if queue is None or self._poster.blocked:
            return backing.park()
        return backing.park() and queue.park()

    def silent_since(self) -> float | None:
        """Since when the backend in use has owed an answer and given none. None while it owes none."""
        return self._waiting_since if self.link is _SERVING and self._ledger.entries else None

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
            self._poster.blocked = self._orphaned = self._orphaned and len(entries) > 0
            self.guest.signal_if_wanted()

    def _answer(self, backing: Backing, responses: list[int]) -> None:
        """Give requests back to the guest, and their places back to the pools."""
        strike_out, view, queue = self._ledger.strike_out, self.guest.view, self.guest.queue
        in_parts = self._poster.parts
        publish = None if queue is None or self._orphaned else queue.publish
        incoming, give_in, give_out = backing.in_view, backing.in_pool.give_back, backing.out_pool.give_back
        for response in responses:
            ident, op, _, length, segments, status_at, place = strike_out(response)
            written = 1
            if op == _READ:
                give_in(place, length)
                if publish and response <= 0xFFFF:
                    written = length + 1
                    for offset, size in segments:
                        view[offset : offset + size] = incoming[place : place + size]
                        place += size
            elif op == _WRITE:
                give_out(place, length)
            if publish:
                if in_parts and (written := self._go_on(backing, response, written)) == 0:
                    continue
                view[status_at] = _STATUS_BYTES[response >> 16]
                publish(ident & 0xFF, written)
                if length > BATCH_BYTES:
                    self.guest.signal_if_wanted()

    def _go_on(self, backing: Backing, response: int, written: int) -> int:
        """A request may come in parts: 0 when the next one is on its way, else what all of it has written."""
        head = response & 0xFF
        if response > 0xFFFF:
            self._poster.parts.pop(head, None)
            return written
        if head not in self._poster.parts:
            return written
        whole = self._poster.post_part(backing, head)
        if whole == 0:
            backing.publish()
            return 0
        return whole + 1 if written > 1 else 1

    def stats(self) -> VbdStats:
        """What has happened so far."""
        return VbdStats(
            requests=self._poster.posted,
            answers=self._answers,
            in_flight=len(self._ledger),
            longest_gap_s=self._longest_gap_s,
            resignalled=self.guest.resignalled,
            switches=tuple(self._switches),
        )
