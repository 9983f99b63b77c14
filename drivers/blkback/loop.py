"""The block backend's data loop: requests from the rings of all vbds, data between pools and images, answers."""

import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from domains.runtime.data_loop import DataLoop
from domains.runtime.faults import FaultPoints
from drivers.blkback.backend import Disk, FrontendBroken, decide
from drivers.blkback.errors import status_of
from drivers.blkback.flusher import Done, Flusher, Job, Jobs
from drivers.blkback.misbehave import misbehave
from drivers.blkback.ring import BackRing
from kernel.abi.ids import VbdHandle
from kernel.abi.io.blkif import Op, RspStatus
from kernel.abi.io.ring import Unsealed

__all__ = ["OnFault", "Opener", "ServeLoop"]

OnFault = Callable[[VbdHandle, str, str], None]
"""`(handle, what, evidence)`: the frontend of that vbd broke the rules."""

Opener = Callable[[Done], Jobs]
"""Makes who does all jobs of a vbd whose image is no raw one."""

BATCH, BATCH_BYTES = 8, 65536
"""Requests of one vbd in a turn, and how much data makes a request count for a batch of its own: then the frontend is
told, and others have their turn."""

_preadv, _pwritev = os.preadv, os.pwritev
_READ, _OK = int(Op.READ), int(RspStatus.OK)
_TRANSFERS = frozenset({_READ, int(Op.WRITE)})


class _Served:
    """One vbd: it is served while it has both a ring and an image."""

    def __init__(self, handle: VbdHandle) -> None:
        self.handle = handle
        self.disk = Disk(0, True, 0)
        self.ring: BackRing | None = None
        self.image = -1
        self.jobs: Jobs | None = None
        self.has_image = False
        self.batch = BATCH
        self.flush_failed = self.untold = _OK
        """How the last flush that failed did; and the same, until it is told on the ring in use."""


class ServeLoop:
    """All vbds of all guests of one driver incarnation, on one data loop. Methods may be called from any thread and do
    not wait. `on_fault` is called on the loop's thread or the caller's.

    `connect` and `activate` of a vbd come in any order; having the image is the leave to serve.
    """

    def __init__(self, on_fault: OnFault, faults: FaultPoints | None = None) -> None:
        self._on_fault = on_fault
        self._faults = faults
        self._loop = DataLoop("blkback", self)
        self._vbds: dict[VbdHandle, _Served] = {}
        self._serving: list[_Served] = []
        self._done: deque[tuple[_Served, list[Job], int]] = deque()

    def start(self) -> None:
        """Begin to serve."""
        self._loop.start()

    def stop(self) -> None:
        """End the loop, wait for that, and give everything back."""
        self._loop.stop()
        for vbd in self._vbds.values():
            self._drop_image(vbd)
            if vbd.ring is not None:
                vbd.ring.close()
        self._vbds.clear()

    @property
    def turns(self) -> int:
        """Turns of the loop so far."""
        return self._loop.turns

    def submit(self, command: Callable[[], None]) -> None:
        """Have `command` called on the loop's thread, after those submitted before."""
        self._loop.submit(command)

    def connect(
        self, handle: VbdHandle, sectors: int, read_only: bool, out_fd: int, in_fd: int, doorbell: socket.socket
    ) -> None:
        """Map a frontend's ring, in the place of an earlier one. Descriptors and doorbell are ours from now on.

        Memory that is not sealed as it must be is the frontend's fault: `on_fault`, and no ring.
        """
        try:
            ring = BackRing(out_fd, in_fd, doorbell)
        except Unsealed as error:
            doorbell.close()
            self._on_fault(handle, "grant is not sealed memory", str(error))
            return
        finally:
            os.close(out_fd)
            os.close(in_fd)
        self._loop.submit(partial(self._connect, handle, Disk(sectors, read_only, ring.size_bytes), ring))

    def activate(self, handle: VbdHandle, image: int | Opener) -> None:
        """Serve the vbd from this image (`VbdImage`): a raw one by its descriptor, which is ours from now on."""
        self._loop.submit(partial(self._activate, handle, image))

    def disconnect(self, handle: VbdHandle) -> None:
        """Forget the vbd, its ring and its image (`VbdDetached`)."""
        self._loop.submit(partial(self._disconnect, handle))

    def misbehave(self, what: str) -> None:
        """Fail in the named way at the next turn."""
        self._loop.submit(partial(self._misbehave, what))

    # On the loop's thread

    def _connect(self, handle: VbdHandle, disk: Disk, ring: BackRing) -> None:
        vbd = self._vbds.setdefault(handle, _Served(handle))
        self._drop_ring(vbd)
        vbd.disk, vbd.ring, vbd.untold = disk, ring, vbd.flush_failed
        self._find_serving()
        self._loop.watch(ring.doorbell.fileno(), partial(self._rung, ring))

    def _activate(self, handle: VbdHandle, image: int | Opener) -> None:
        if self._faults is not None:
            self._faults.hit("activate")
        vbd = self._vbds.setdefault(handle, _Served(handle))
        self._drop_image(vbd)
        vbd.has_image = True
        if isinstance(image, int):
            vbd.image = image
        else:
            vbd.jobs = image(partial(self._are_done, vbd))
        self._find_serving()

    def _disconnect(self, handle: VbdHandle) -> None:
        vbd = self._vbds.pop(handle, None)
        if vbd is not None:
            self._drop_ring(vbd)
            self._drop_image(vbd)
            self._find_serving()

    def _find_serving(self) -> None:
        """Those with both ring and image. A new list, since the loop may be on its way through the old one."""
        self._serving = [vbd for vbd in self._vbds.values() if vbd.ring is not None and vbd.has_image]

    def _misbehave(self, what: str) -> None:
        """Whoever lied on a ring serves it no more: its next true word could hide the lie, or accuse the other end."""
        lying = self._serving
        misbehave(what, [vbd.ring for vbd in lying if vbd.ring is not None])
        for vbd in lying:
            self._drop_ring(vbd)

    def _drop_ring(self, vbd: _Served) -> None:
        ring, vbd.ring = vbd.ring, None
        if ring is not None:
            self._loop.unwatch(ring.doorbell.fileno())
            ring.close()
            self._find_serving()

    def _drop_image(self, vbd: _Served) -> None:
        """Close the image, or leave that to the thread that may be at work on it."""
        if vbd.jobs is not None:
            vbd.jobs.close()
        elif vbd.image >= 0:
            os.close(vbd.image)
        vbd.image, vbd.jobs, vbd.has_image = -1, None, False

    def _rung(self, ring: BackRing) -> None:
        """The loop is awake, and will look at its rings."""
        if not ring.doorbell.drain():
            self._loop.unwatch(ring.doorbell.fileno())

    def serve(self) -> bool:
        """For the loop: what was done beside it, and a turn of each vbd."""
        found = False
        while self._done:
            self._answer_jobs(*self._done.popleft())
            found = True
        for vbd in self._serving:
            try:
                found = self._do_requests(vbd) or found
            except FrontendBroken as broken:
                self._drop_ring(vbd)
                self._on_fault(vbd.handle, broken.what, broken.evidence)
        return found

    def park(self) -> float | None:
        """For the loop: sleep until a doorbell rings."""
        for vbd in self._serving:
            if vbd.ring is not None and not vbd.ring.park():
                return 0
        return 0 if self._done else None

    def _do_requests(self, vbd: _Served) -> bool:
        """A batch of one vbd's requests. False when there are none."""
        ring, image, disk = vbd.ring, vbd.image, vbd.disk
        if ring is None or not ring.requests():
            return False
        faults = self._faults if self._faults else None
        words: list[int] = []
        length = 0
        for request in ring.take(vbd.batch):
            if faults is not None:
                faults.hit("request")
            ident, op, _, length, sector, place = request
            status = decide(request, disk)
            if status == _OK and (image < 0 or op not in _TRANSFERS):
                self._hand_over(vbd, Job(ring, ident, op, sector << 9, length, place))
                continue
            if status == _OK:
                try:
                    if op == _READ:
                        done = _preadv(image, [ring.in_view[place : place + length]], sector << 9)
                    else:
                        done = _pwritev(image, [ring.out_view[place : place + length]], sector << 9)
                    if done != length:
                        status = _finish(image, ring, request, done)
                except OSError as error:
                    status = status_of(error)
            if faults is not None:
                faults.hit("io")
            words.append(ident | status << 16)
            if length > BATCH_BYTES:
                self._publish(ring, words)
                words = []
        vbd.batch = 1 if length > BATCH_BYTES else BATCH
        if words:
            self._publish(ring, words)
        return True

    def _publish(self, ring: BackRing, words: list[int]) -> None:
        wanted = ring.publish(words)
        if self._faults:
            self._faults.hit("reply")
        if wanted:
            ring.doorbell.ring()

    def _hand_over(self, vbd: _Served, job: Job) -> None:
        if vbd.jobs is None:
            vbd.jobs = Flusher(vbd.image, partial(self._are_done, vbd))
        vbd.jobs.submit(job)

    def _are_done(self, vbd: _Served, jobs: list[Job], status: int) -> None:
        """On the thread that did them: the loop finds it at its next look, at the latest when it is woken."""
        self._done.append((vbd, jobs, status))
        self._loop.wake()

    def _answer_jobs(self, vbd: _Served, jobs: list[Job], status: int) -> None:
        """Answer those that the ring in use has asked for. An earlier ring is gone, and nobody waits there.

        A failed flush is told once on each ring: the kernel tells a write-back error once, and whoever was to pass it
        on from an earlier ring may have died before it did.
        """
        flushes = jobs[0].op == Op.FLUSH
        if flushes:
            vbd.flush_failed = status or vbd.flush_failed
            status = vbd.untold = status or vbd.untold
        words = [job.ident | status << 16 for job in jobs if job.ring is vbd.ring]
        if flushes and words:
            vbd.untold = _OK
        if self._faults:
            self._faults.hit("io")
        if vbd.ring is not None and words:
            self._publish(vbd.ring, words)


def _finish(image: int, ring: BackRing, request: tuple[int, ...], done: int) -> int:
    """The rest of a transfer that was cut short: the disk is full, the image was truncated, or nothing was wrong."""
    _, op, _, length, sector, place = request
    while done < length:
        at, offset = place + done, (sector << 9) + done
        if op == _READ:
            more = os.preadv(image, [ring.in_view[at : place + length]], offset)
        else:
            more = os.pwritev(image, [ring.out_view[at : place + length]], offset)
        if more == 0:
            return RspStatus.IO_ERROR
        done += more
    return _OK
