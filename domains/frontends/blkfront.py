"""The block frontend: one data loop for all vbds of one guest, between its virtqueues and its backends' rings."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

from domains.frontends.backing import Backing, RingBroken
from domains.frontends.terminator import Terminator, session_for
from domains.frontends.vbd import Link, Vbd, VbdStats
from domains.runtime.data_loop import DataLoop
from domains.virtio.queue import QueueFault
from kernel.abi.ids import Peer, VbdHandle

__all__ = ["Backing", "BlkfrontLoop", "OnFault", "OnStall", "VbdFront"]

RELEASE_AFTER_S = 0.1
"""A ring is dropped when its backend is gone, and then what was in flight is on its way to the next one."""

STALLED_AFTER_S, STALLED_AGAIN_S = 0.05, 1.0
"""A backend that owes an answer for so long may hang, and the hypervisor is to look; again while it lasts. A disk takes
so long when it is busy."""

OnFault = Callable[[VbdHandle, Peer | None, str, str], None]
"""`(handle, peer, what, evidence)`: that backend, or the guest where `peer` is None, broke the rules."""

OnStall = Callable[[VbdHandle, Peer], None]
"""`(handle, peer)`: that backend, in use, gives no answer."""


@dataclass(frozen=True, slots=True)
class VbdFront:
    """One vbd as its guest has it. `line` leads to the keeper of its guest's connection (vhost-user), `in_flight` is a
    descriptor of its queue's table of that name."""

    handle: VbdHandle
    vdev: str
    sectors: int
    read_only: bool
    line: socket.socket
    in_flight: int


class _Device:
    """A vbd with its guest's connection and the rings made for its backends."""

    def __init__(self, front: VbdFront, loop: DataLoop, on_fault: OnFault, on_stall: OnStall) -> None:
        self.vbd = Vbd(front.sectors, read_only=front.read_only, serial=f"triovisor-{front.vdev}")
        self._loop = loop
        self._offered: dict[Peer, Backing] = {}
        self._on_fault = partial(on_fault, front.handle)
        self._on_stall = partial(on_stall, front.handle)
        self._told_at = 0.0
        self._terminator = Terminator(
            loop,
            self.vbd,
            front.line,
            front.in_flight,
            partial(session_for, front.sectors, read_only=front.read_only),
            on_guest_fault=partial(self._on_fault, None),
        )

    def serve(self) -> bool:
        try:
            return self.vbd.serve()
        except RingBroken as broken:
            self._distrust(broken)
        except QueueFault as fault:
            self._terminator.fail(fault.what, fault.evidence)
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
        self._offered[peer] = backing

    def attach_doorbell(self, peer: Peer, doorbell: socket.socket) -> None:
        backing = self.vbd.backing if peer == self.vbd.peer else self._offered.get(peer)
        if backing is None:
            doorbell.close()
            return
        backing.attach_doorbell(doorbell)
        if backing is self.vbd.backing:
            self._watch_doorbell()

    def activate(self, peer: Peer, *, take_published: bool) -> None:
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
            _release_aside(old)

    def withdraw(self, peer: Peer) -> None:
        if peer == self.vbd.peer:
            self._unwatch_doorbell()
            self.vbd.withdraw()
            return
        backing = self._offered.pop(peer, None)
        if backing is not None:
            _release_aside(backing)

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
        self._terminator.close()
        self._unwatch_doorbell()
        backings = [*self._offered.values(), *([self.vbd.backing] if self.vbd.backing is not None else [])]
        for backing in backings:
            backing.release()


def _release_aside(backing: Backing) -> None:
    """Unmapping and freeing 12 MiB takes milliseconds, which no guest shall wait for, least of all now."""
    timer = threading.Timer(RELEASE_AFTER_S, backing.release)
    timer.daemon = True
    timer.start()


class BlkfrontLoop:
    """All vbds of one guest, on one data loop. Methods may be called from any thread and do not wait.

    `on_fault` and `on_stall` are called on the loop's thread. For each backend incarnation of a vbd: `offer` a fresh
    `Backing`, then `attach_doorbell` when there is one, `activate` when it is to serve, `withdraw` when it is gone.
    """

    def __init__(self, vbds: Sequence[VbdFront], on_fault: OnFault, on_stall: OnStall) -> None:
        self._loop = DataLoop("blkfront", self)
        self._devices = {front.handle: _Device(front, self._loop, on_fault, on_stall) for front in vbds}
        self._vbds = [device.vbd for device in self._devices.values()]
        self._served = [device.serve for device in self._devices.values()]
        self._resting = False

    def start(self) -> None:
        """Begin to serve."""
        self._loop.start()

    def stop(self) -> None:
        """End the loop, wait for that, and give everything back, lines included."""
        self._loop.stop()
        for device in self._devices.values():
            with contextlib.suppress(ValueError):
                device.close()

    def offer(self, handle: VbdHandle, peer: Peer, backing: Backing) -> None:
        """A ring for this incarnation, from now on the loop's own. Before `activate` of the same."""
        self._loop.submit(partial(self._devices[handle].offer, peer, backing))

    def attach_doorbell(self, handle: VbdHandle, peer: Peer, doorbell: socket.socket) -> None:
        """The doorbell to this incarnation, before or after `activate`; from now on the loop's own."""
        self._loop.submit(partial(self._devices[handle].attach_doorbell, peer, doorbell))

    def activate(self, handle: VbdHandle, peer: Peer, take_published: bool) -> None:
        """This incarnation serves: post to it what is in flight, oldest first (`BackendActive`)."""
        self._loop.submit(partial(self._devices[handle].activate, peer, take_published=take_published))

    def withdraw(self, handle: VbdHandle, peer: Peer) -> None:
        """This incarnation is gone (`BackendWithdrawn`). The ring in use stays until a successor is active."""
        self._loop.submit(partial(self._devices[handle].withdraw, peer))

    def rest(self, resting: bool) -> None:
        """While the guest stands still it cannot look, and is not signalled again and again."""
        self._loop.submit(partial(setattr, self, "_resting", resting))

    def submit(self, command: Callable[[], None]) -> None:
        """Have `command` called on the loop's thread, after those submitted before."""
        self._loop.submit(command)

    def stats(self) -> dict[VbdHandle, VbdStats]:
        """What has happened so far, for each vbd."""
        return {handle: device.vbd.stats() for handle, device in self._devices.items()}

    def serve(self) -> bool:
        """For the loop: a turn of each vbd."""
        found = False
        for serve in self._served:
            found = serve() or found
        return found

    def park(self) -> float | None:
        """For the loop: sleep no longer than until a guest that does not look must be signalled again, or a backend has
        owed an answer for too long."""
        for vbd in self._vbds:
            if not vbd.park():
                return 0
        waits = [device.patience_s() for device in self._devices.values()]
        if not self._resting:
            waits += [vbd.guest.nudge() for vbd in self._vbds]
        return min((wait for wait in waits if wait is not None), default=None)
