"""A frontend for a backend's tests: it posts requests by hand, right or wrong."""

import select
import socket
import struct

from domains.frontends.backing import Backing
from drivers.blkback.loop import ServeLoop
from kernel.abi.ids import VbdHandle
from kernel.abi.io.blkif import PROD, REQUEST, REQUESTS_AT, RING_BYTES

__all__ = ["SECTORS", "FrontRing"]

SECTORS = 128
DEADLINE_S = 20


class FrontRing:
    """One ring, connected to a loop as vbd `handle`."""

    def __init__(
        self,
        loop: ServeLoop,
        handle: int = 1,
        *,
        sectors: int = SECTORS,
        read_only: bool = False,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        self.backing = Backing.create(ring_bytes)
        self.handle = VbdHandle(handle)
        self.in_flight = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out_fd, in_fd = self.backing.out_fd, self.backing.in_fd
        self.backing.out_fd = self.backing.in_fd = -1
        loop.connect(self.handle, sectors, read_only, out_fd, in_fd, theirs)
        self.backing.attach_doorbell(ours)
        self.bell = ours

    def post(self, head: int, op: int, length: int = 0, sector: int = 0, place: int = 0) -> None:
        """Post and publish one request."""
        self.backing.post(head, op, length, sector, place)
        self.in_flight += 1
        self.backing.publish()

    def post_raw(self, fields: tuple[int, ...], *, ahead: int = 1) -> None:
        """Write a request with any fields into the first slot, and any producer index."""
        REQUEST.pack_into(self.backing.out_view, REQUESTS_AT, *fields)
        struct.pack_into("<I", self.backing.out_view, 4 * PROD, ahead)
        self.backing.ring_doorbell()

    def answers(self, count: int) -> list[tuple[int, int]]:
        """Wait for so many responses: heads and statuses."""
        got: list[tuple[int, int]] = []
        while len(got) < count:
            words = self.backing.responses(self.in_flight)
            self.in_flight -= len(words)
            got += [(word & 0xFF, word >> 16) for word in words]
            if not words and self.backing.park():
                ready, _, _ = select.select([self.bell], [], [], DEADLINE_S)
                assert ready, f"{len(got)} of {count} answers came"
                assert self.backing.doorbell is not None
                self.backing.doorbell.drain()
        return got

    def close(self) -> None:
        self.backing.release()
