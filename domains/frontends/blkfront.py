"""The block frontend: one data loop for all vbds of one guest, between its virtqueues and its backends' rings."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from domains.frontends.backing import Backing
from domains.frontends.device import Device
from domains.frontends.terminator import Terminator, session_for
from domains.frontends.vbd import Vbd, VbdStats
from domains.runtime.data_loop import DataLoop
from domains.virtio.queue import QueueFault
from kernel.abi.ids import Peer, VbdHandle

__all__ = ["Backing", "BlkfrontLoop", "OnFault", "OnStall", "VbdFront"]

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


class _Served:
    """A vbd with its guest's connection."""

    def __init__(self, front: VbdFront, loop: DataLoop, on_fault: OnFault, on_stall: OnStall) -> None:
        vbd = Vbd(front.sectors, read_only=front.read_only, serial=f"triovisor-{front.vdev}")
        self.device = Device(vbd, loop, partial(on_fault, front.handle), partial(on_stall, front.handle))
        self.terminator = Terminator(
            loop,
            vbd,
            front.line,
            front.in_flight,
            partial(session_for, front.sectors, read_only=front.read_only),
            on_guest_fault=partial(on_fault, front.handle, None),
        )

    def serve(self) -> bool:
        try:
            return self.device.serve()
        except QueueFault as fault:
            self.terminator.fail(fault.what, fault.evidence)
        return True

    def close(self) -> None:
        self.terminator.close()
        self.device.close()


class BlkfrontLoop:
    """All vbds of one guest, on one data loop. Methods may be called from any thread and do not wait.

    `on_fault` and `on_stall` are called on the loop's thread. For each backend incarnation of a vbd: `offer` a fresh
    `Backing`, then `attach_doorbell` when there is one, `activate` when it is to serve, `withdraw` when it is gone.
    """

    def __init__(self, vbds: Sequence[VbdFront], on_fault: OnFault, on_stall: OnStall) -> None:
        self._loop = DataLoop("blkfront", self)
        served = {front.handle: _Served(front, self._loop, on_fault, on_stall) for front in vbds}
        self._devices = {handle: each.device for handle, each in served.items()}
        self._vbds = [device.vbd for device in self._devices.values()]
        self._serve = [each.serve for each in served.values()]
        self._close = [each.close for each in served.values()]
        self._resting = False

    def start(self) -> None:
        """Begin to serve."""
        self._loop.start()

    def stop(self) -> None:
        """End the loop, wait for that, and give everything back, lines included."""
        self._loop.stop()
        for close in self._close:
            close()

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
        for serve in self._serve:
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
