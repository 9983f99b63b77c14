"""A vbd between a guest driver and a backend's ring, without loops or processes: each step is the test's own."""

import socket

from domains.frontends.backing import Backing
from domains.frontends.vbd import Vbd
from drivers.blkback.ring import BackRing
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.io.blkif import RING_BYTES, SLOTS
from tests.domains.virtio.guest_driver import GuestDriver

__all__ = ["SECTORS", "Stand", "peer"]

SECTORS = 1 << 15


def peer(generation: int) -> Peer:
    return Peer(DomId(1), Generation(generation))


class Stand:
    """One vbd and its guest. `ring` is the active backend's end."""

    def __init__(self, *, read_only: bool = False, size: int = 64, ring_bytes: int = RING_BYTES) -> None:
        self.guest = GuestDriver(size=size)
        self.vbd = Vbd(SECTORS, read_only=read_only, serial="test")
        self.vbd.guest.start(self.guest.queue(), self.guest.view)
        self.ring_bytes = ring_bytes
        self.generation = 0
        self.rings: list[BackRing] = []
        self.backings: list[Backing] = []

    @property
    def ring(self) -> BackRing:
        return self.rings[-1]

    def activate(self, *, take_published: bool = True):
        """A new backend incarnation, its ring mapped by the backend's own code."""
        backing = Backing.create(self.ring_bytes)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.rings.append(BackRing(backing.out_fd, backing.in_fd, theirs))
        backing.close_descriptors()
        backing.attach_doorbell(ours)
        self.backings.append(backing)
        self.generation += 1
        old, broken = self.vbd.activate(peer(self.generation), backing, take_published=take_published)
        if old is not None:
            old.release()
            self.backings.remove(old)
        return broken

    def waiting(self):
        """Requests on the active ring, taken off it."""
        return self.ring.take(SLOTS)

    def answer(self, *requests, status: int = 0, fill: bytes | None = None) -> None:
        """Give responses, with a byte to fill what was read."""
        for _, op, _, length, _, place in requests:
            if op == 0 and fill is not None:
                self.ring.in_view[place : place + length] = fill * length
        self.ring.publish([ident | status << 16 for ident, *_ in requests])

    def close(self) -> None:
        for ring in self.rings:
            ring.close()
        for backing in self.backings:
            backing.release()
        self.guest.close()
