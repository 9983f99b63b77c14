"""A guest's device driver for tests: it lays out a virtqueue in a memfd, and can lay it out wrongly."""

import os
import struct
from dataclasses import dataclass

from domains.virtio.memory import GuestMemory
from domains.virtio.queue import QueueLayout, SplitQueue

__all__ = ["INDIRECT", "NEXT", "WRITE", "GuestDriver", "Request"]

NEXT, WRITE, INDIRECT = 1, 2, 4

MEMORY_BYTES = 16 << 20
TABLE, AVAILABLE, USED = 0x0, 0x2000, 0x3000
SLOT_BYTES = 0x2000
SLOTS_AT = 0x10000
DATA_AT = 0x400000

Descriptor = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """Where one request's parts are in the guest's memory."""

    head: int
    data_at: int
    length: int
    status_at: int


class GuestDriver:
    """Memory with one queue. Addresses start at `base`, as they may in a real guest."""

    def __init__(self, *, size: int = 64, base: int = 0, event_index: bool = True) -> None:
        self.size = size
        self.base = base
        self.event_index = event_index
        self.descriptor = os.memfd_create("guest")
        os.ftruncate(self.descriptor, MEMORY_BYTES)
        self.memory = GuestMemory(self.descriptor, base, MEMORY_BYTES, 0)
        self.view = self.memory.view
        self.offered = 0
        self.seen = 0

    @property
    def layout(self) -> QueueLayout:
        return QueueLayout(self.size, TABLE, AVAILABLE, USED)

    def queue(self) -> SplitQueue:
        """The device's side of this queue, as it is after a fresh set-up."""
        return SplitQueue(self.memory, self.layout, event_index=self.event_index, next_available=self.offered)

    def close(self) -> None:
        os.close(self.descriptor)

    def put(self, index: int, descriptor: Descriptor, table: int = TABLE) -> None:
        """Write one descriptor: address (from 0, the base is added), length, flags, next."""
        address, *rest = descriptor
        struct.pack_into("<QIHH", self.view, table + 16 * index, (address + self.base) % (1 << 64), *rest)

    def offer(self, head: int, *, ahead: int = 1) -> None:
        """Put a head in the available ring and publish it."""
        struct.pack_into("<H", self.view, AVAILABLE + 4 + 2 * (self.offered % self.size), head)
        self.offered = (self.offered + ahead) & 0xFFFF
        struct.pack_into("<H", self.view, AVAILABLE + 2, self.offered)

    def chain(self, head: int, descriptors: list[Descriptor], *, indirect: bool = True) -> None:
        """Lay a chain out and offer it; each descriptor leads to the next but for the last, whatever its `next`."""
        table = SLOTS_AT + head * SLOT_BYTES if indirect else TABLE
        first = 0 if indirect else head
        for place, (address, length, flags, _) in enumerate(descriptors):
            more = NEXT if place < len(descriptors) - 1 else 0
            self.put(first + place, (address, length, flags | more, first + place + 1), table)
        if indirect:
            self.put(head, (table, 16 * len(descriptors), INDIRECT, 0))
        self.offer(head)

    def submit(
        self, head: int, kind: int, sector: int, data: bytes | int, *, pieces: int = 1, indirect: bool = True
    ) -> Request:
        """Offer a block request as Linux lays it out: `data` is what to write, or how many bytes to read."""
        header_at = SLOTS_AT + head * SLOT_BYTES + 0x1800
        status_at = header_at + 16
        length = data if isinstance(data, int) else len(data)
        data_at = DATA_AT + head * 0x10000
        struct.pack_into("<IIQ", self.view, header_at, kind, 0, sector)
        self.view[status_at] = 0xFF
        if isinstance(data, bytes):
            self.view[data_at : data_at + length] = data
        flags = WRITE if isinstance(data, int) else 0
        step = length // pieces
        segments = [(data_at + place * step, step, flags, 0) for place in range(pieces)] if length else []
        self.chain(head, [(header_at, 16, 0, 0), *segments, (status_at, 1, WRITE, 0)], indirect=indirect)
        return Request(head, data_at, length, status_at)

    def completed(self) -> list[tuple[int, int]]:
        """Heads and written bytes that the device has given back since the last look."""
        (used,) = struct.unpack_from("<H", self.view, USED + 2)
        given = []
        while self.seen != used:
            given.append(struct.unpack_from("<II", self.view, USED + 4 + 8 * (self.seen % self.size)))
            self.seen = (self.seen + 1) & 0xFFFF
        struct.pack_into("<H", self.view, AVAILABLE + 4 + 2 * self.size, self.seen)
        return given

    def status(self, request: Request) -> int:
        return self.view[request.status_at]

    def data(self, request: Request) -> bytes:
        return bytes(self.view[request.data_at : request.data_at + request.length])
