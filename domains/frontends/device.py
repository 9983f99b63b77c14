"""One vbd and the rings made for its backends: which one it uses, who rings, what is released when."""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from domains.frontends.backing import Backing, RingBroken
from domains.frontends.vbd import Link, Vbd
from kernel.abi.ids import Peer

__all__ = ["Device", "Watch"]

RELEASE_AFTER_S = 0.1
"""A ring is dropped when its backend is gone, and then what was in flight is on its way to the next one."""

MOST_ASIDE = 1
"""Rings that wait for that, of one vbd: backends that die in quick succession do not fill the guest's memory."""

STALLED_AFTER_S, STALLED_AGAIN_S = 0.05, 1.0
"""A backend that owes an answer for so long may hang, and the hypervisor is to look; again while it lasts. A disk takes
so long when it is busy."""


class Watch(Protocol):
    """Who waits for doorbells: a data loop, or Trio."""

    def watch(self, descriptor: int, handler: Callable[[], None], /) -> None:
        """Call `handler` when the descriptor is readable or hung up, then serve the rings."""

    def unwatch(self, descriptor: int, /) -> None:
        """No more."""


class Device:
    """For one thread. `on_fault(peer, what, evidence)`: that backend broke the ring's rules. `on_stall(peer)`: that
    one, in use, gives no answer."""

    def __init__(
        self,
        vbd: Vbd,
        loop: Watch,
        on_fault: Callable[[Peer | None, str, str], None],
        on_stall: Callable[[Peer], None],
    ) -> None:
        self.vbd = vbd
        self._loop = loop
        self._offered: dict[Peer, Backing] = {}
        self._aside: deque[Backing] = deque()
        self._on_fault = on_fault
        self._on_stall = on_stall
        self._told_at = 0.0

    def serve(self) -> bool:
        """A turn of the vbd; False when there was nothing to do. Raises QueueFault, its guest's."""
        try:
            return self.vbd.serve()
        except RingBroken as broken:
            self._distrust(broken)
        return True

    def patience_s(self) -> float | None:
        """Seconds until its backend will have owed an answer for too long; tells once it has. None: it owes none."""
        since, peer = self.vbd.silent_since(), self.vbd.peer
        if since is None or peer is None:
            return None
        now = monotonic()
        due = max(since + STALLED_AFTER_S, self._told_at + STALLED_AGAIN_S)
        if due > now:
            return due - now
        self._told_at = now
        self._on_stall(peer)
        return STALLED_AGAIN_S

    def offer(self, peer: Peer, backing: Backing) -> None:
        """A ring for this incarnation."""
        self._offered[peer] = backing

    def attach_doorbell(self, peer: Peer, doorbell: socket.socket) -> None:
        """The doorbell to this incarnation, from now on ours."""
        backing = self.vbd.backing if peer == self.vbd.peer else self._offered.get(peer)
        if backing is None:
            doorbell.close()
            return
        backing.attach_doorbell(doorbell)
        if backing is self.vbd.backing:
            self._watch_doorbell()

    def activate(self, peer: Peer, *, take_published: bool) -> None:
        """This incarnation serves: what is in flight goes to it."""
        backing = self._offered.pop(peer, None)
        if backing is None:
            return
        self._unwatch_doorbell()
        predecessor = self.vbd.peer
        old, broken = self.vbd.activate(peer, backing, take_published=take_published)
        if broken is not None:
            self._on_fault(predecessor, broken.what, broken.evidence)
        self._watch_doorbell()
        if old is not None:
            self._release_aside(old)

    def withdraw(self, peer: Peer) -> None:
        """This incarnation is gone. The ring in use stays until there is a successor."""
        if peer == self.vbd.peer:
            self._unwatch_doorbell()
            self.vbd.withdraw()
            return
        backing = self._offered.pop(peer, None)
        if backing is not None:
            self._release_aside(backing)

    def _distrust(self, broken: RingBroken) -> None:
        self._unwatch_doorbell()
        self.vbd.distrust()
        self._on_fault(self.vbd.peer, broken.what, broken.evidence)

    def _rung(self) -> None:
        backing = self.vbd.backing
        if backing is not None and backing.doorbell is not None and not backing.doorbell.drain():
            self._unwatch_doorbell()

    def _watch_doorbell(self) -> None:
        if self.vbd.backing is not None and self.vbd.backing.doorbell is not None and self.vbd.link is Link.SERVING:
            self._loop.watch(self.vbd.backing.doorbell.fileno(), self._rung)

    def _unwatch_doorbell(self) -> None:
        if self.vbd.backing is not None and self.vbd.backing.doorbell is not None:
            self._loop.unwatch(self.vbd.backing.doorbell.fileno())

    def close(self) -> None:
        """Give every ring back."""
        self._unwatch_doorbell()
        backings = [*self._offered.values(), *([self.vbd.backing] if self.vbd.backing is not None else [])]
        for backing in backings:
            backing.release()

    def _release_aside(self, backing: Backing) -> None:
        """Unmapping and freeing 12 MiB takes milliseconds, which no guest shall wait for, least of all now."""
        if len(self._aside) >= MOST_ASIDE:
            self._release_one()
        self._aside.append(backing)
        timer = threading.Timer(RELEASE_AFTER_S, self._release_one)
        timer.daemon = True
        timer.start()

    def _release_one(self) -> None:
        """On any thread: the longest waiting, if another thread has not had it."""
        with contextlib.suppress(IndexError):
            self._aside.popleft().release()
