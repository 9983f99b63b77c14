"""A native guest's disks: a frontend of their own for each, in Trio, over the rings that PV guests have too.

While a driver is dead, requests wait; what it had not answered is asked again of its successor. The program sees a
pause, and nothing else.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial

import trio

from domains.frontends.backing import Backing
from domains.frontends.device import Device
from domains.frontends.vbd import Vbd, VbdStats
from domains.native.requests import MAX_DISCARD_BYTES, MAX_TRANSFER_BYTES, MAX_ZEROES_BYTES, Request, Requests
from domains.virtio.blk import S_OK, S_UNSUPP, UNMAP, Type
from kernel.abi.ids import Peer, VbdHandle
from kernel.abi.io.blkif import SECTOR_BYTES
from kernel.abi.roles import GuestVbd

__all__ = ["SECTOR_BYTES", "Disk", "Disks"]

OnFault = Callable[[VbdHandle, Peer, str, str], None]
"""`(handle, peer, what, evidence)`: that backend broke the ring's rules."""

OnStall = Callable[[VbdHandle, Peer], None]
"""`(handle, peer)`: that backend, in use, gives no answer."""


class Disk:
    """A vbd of this guest's own. Offsets and lengths are bytes, whole sectors of 512. Any task may ask, and any number
    at once: up to 256 requests are in flight, more wait.

    A request that is given up (its task cancelled) may still be done. Errors are OSErrors: EIO what the driver could
    not do, EROFS a write to a disk with `access = "ro"`, EOPNOTSUPP what the driver does not know. A place that is no
    whole sector or not on the disk is a ValueError.
    """

    def __init__(
        self,
        vbd: GuestVbd,
        nursery: trio.Nursery,
        on_fault: Callable[[Peer | None, str, str], None],
        on_stall: Callable[[Peer], None],
    ) -> None:
        self.vdev = vbd.vdev
        self.sectors = vbd.sectors
        self.size = vbd.sectors * SECTOR_BYTES
        self.read_only = vbd.read_only
        self._requests = Requests()
        self._vbd = Vbd(vbd.sectors, read_only=vbd.read_only, serial=f"triovisor-{vbd.vdev}")
        self._vbd.guest.start(self._requests, self._requests.view)
        self._watch = _TrioWatch(nursery, self._turn)
        self._device = Device(self._vbd, self._watch, on_fault, on_stall)
        self._owed = trio.Event()
        nursery.start_soon(self._mind_silence)

    async def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on."""
        self._check(offset, length)
        if length <= MAX_TRANSFER_BYTES:
            return await self._read(offset, length)
        return b"".join([await self._read(at, size) for at, size in _parts(offset, length, MAX_TRANSFER_BYTES)])

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of it. It survives any death of a driver when this returns, and one of the host after a `flush`."""
        self._check(offset, len(data))
        self._check_writable()
        view = memoryview(data).cast("B")
        for at, size in _parts(offset, len(view), MAX_TRANSFER_BYTES):
            request = await self._requests.reserve(Type.OUT, size)
            self._requests.view[request.place : request.place + size] = view[at - offset : at - offset + size]
            await self._ask(request, at)
            self._requests.leave(request)

    async def flush(self) -> None:
        """Everything whose `write` has returned is on stable storage when this returns."""
        request = await self._requests.reserve(Type.FLUSH, 0)
        await self._ask(request, 0)
        self._requests.leave(request)

    async def discard(self, offset: int, length: int) -> None:
        """These sectors' contents are no longer wanted. A hint: they need not read as zeros."""
        await self._ask_range(Type.DISCARD, offset, length, MAX_DISCARD_BYTES)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Have these sectors read as zeros, without sending any. With `unmap` the image may give their space back."""
        await self._ask_range(Type.WRITE_ZEROES, offset, length, MAX_ZEROES_BYTES, UNMAP if unmap else 0)

    async def _ask_range(self, kind: int, offset: int, length: int, most: int, flags: int = 0) -> None:
        self._check(offset, length)
        self._check_writable()
        for at, size in _parts(offset, length, most):
            request = await self._requests.reserve(kind, 0)
            await self._ask(request, at, size, flags)
            self._requests.leave(request)

    def stats(self) -> VbdStats:
        """What has happened so far: requests, and each change of drivers with the outage that it meant."""
        return self._vbd.stats()

    async def _read(self, offset: int, length: int) -> bytes:
        request = await self._requests.reserve(Type.IN, length)
        await self._ask(request, offset)
        data = bytes(self._requests.view[request.place : request.place + length])
        self._requests.leave(request)
        return data

    async def _ask(self, request: Request, offset: int, range_bytes: int = 0, flags: int = 0) -> None:
        """Post it and wait for its answer. When this raises, the request is left."""
        self._requests.offer(request, offset // SECTOR_BYTES, range_bytes // SECTOR_BYTES, flags)
        try:
            self._turn()
            self._owed.set()
            await request.done.wait()
            _raise_error(request, f"{self.vdev} at byte {offset}")
        except BaseException:
            self._requests.leave(request)
            raise

    def _check(self, offset: int, length: int) -> None:
        if offset % SECTOR_BYTES or length % SECTOR_BYTES or length <= 0:
            raise ValueError(f"{length} bytes at {offset}: give whole sectors of {SECTOR_BYTES}")
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset}: {self.vdev} has {self.size}")

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.vdev)

    def _turn(self) -> None:
        """Post what there is to post, take what there is to take, and have the driver ring at what comes next."""
        while True:
            while self._device.serve():
                pass
            if self._vbd.park():
                return

    async def _mind_silence(self) -> None:
        """Look whether the driver owes an answer for too long, while it owes one."""
        while True:
            await self._owed.wait()
            wait_s = self._device.patience_s()
            if wait_s is None:
                self._owed = trio.Event()
            else:
                await trio.sleep(wait_s)

    def offer(self, peer: Peer, backing: Backing) -> None:
        """A ring for this incarnation of the driver."""
        self._device.offer(peer, backing)

    def attach_doorbell(self, peer: Peer, doorbell: socket.socket) -> None:
        """The doorbell to it."""
        self._device.attach_doorbell(peer, doorbell)

    def activate(self, peer: Peer, take_published: bool) -> None:
        """It serves."""
        self._device.activate(peer, take_published=take_published)
        self._turn()
        self._owed.set()

    def withdraw(self, peer: Peer) -> None:
        """It is gone."""
        self._device.withdraw(peer)


class Disks:
    """All disks of this guest, by their handles: the `Fronts` that the hypervisor's upcalls are for."""

    def __init__(self, vbds: Iterable[GuestVbd], nursery: trio.Nursery, on_fault: OnFault, on_stall: OnStall) -> None:
        self._disks = {
            vbd.handle: Disk(vbd, nursery, partial(_tell, on_fault, vbd.handle), partial(on_stall, vbd.handle))
            for vbd in vbds
        }
        self.by_vdev = {disk.vdev: disk for disk in self._disks.values()}

    def offer(self, handle: VbdHandle, peer: Peer, backing: Backing) -> None:
        self._disks[handle].offer(peer, backing)

    def attach_doorbell(self, handle: VbdHandle, peer: Peer, doorbell: socket.socket) -> None:
        self._disks[handle].attach_doorbell(peer, doorbell)

    def activate(self, handle: VbdHandle, peer: Peer, take_published: bool) -> None:
        self._disks[handle].activate(peer, take_published)

    def withdraw(self, handle: VbdHandle, peer: Peer) -> None:
        self._disks[handle].withdraw(peer)


class _TrioWatch:
    """Doorbells under Trio: a task for each, and a turn of the rings after each ring."""

    def __init__(self, nursery: trio.Nursery, turn: Callable[[], None]) -> None:
        self._nursery = nursery
        self._turn = turn
        self._watched: dict[int, object] = {}

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        mark = self._watched[descriptor] = object()
        self._nursery.start_soon(self._wait, descriptor, handler, mark)

    def unwatch(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, None) is not None:
            trio.lowlevel.notify_closing(descriptor)

    async def _wait(self, descriptor: int, handler: Callable[[], None], mark: object) -> None:
        while self._watched.get(descriptor) is mark:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            except trio.ClosedResourceError:
                return
            handler()
            self._turn()


def _tell(on_fault: OnFault, handle: VbdHandle, peer: Peer | None, what: str, evidence: str) -> None:
    if peer is not None:
        on_fault(handle, peer, what, evidence)


def _parts(offset: int, length: int, most: int) -> list[tuple[int, int]]:
    """`(offset, length)` of parts of at most so many bytes."""
    return [(at, min(most, offset + length - at)) for at in range(offset, offset + length, most)]


def _raise_error(request: Request, where: str) -> None:
    if request.status != S_OK:
        number = errno.EOPNOTSUPP if request.status == S_UNSUPP else errno.EIO
        raise OSError(number, os.strerror(number), where)
