"""A native guest's disk against a backend's ring in the same process: every request answered once, whoever dies."""

import errno
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from domains.frontends.backing import Backing
from domains.frontends.device import STALLED_AFTER_S
from domains.native.disk import Disk
from domains.native.requests import MAX_TRANSFER_BYTES, MAX_ZEROES_BYTES, Requests
from domains.virtio.blk import Type
from drivers.blkback.ring import BackRing
from kernel.abi.ids import DomId, Generation, Peer, VbdHandle
from kernel.abi.io.blkif import SLOTS, Op, RspStatus
from kernel.abi.roles import GuestVbd

SECTORS = 1 << 15
MIB = 1 << 20


class Back:
    """The driver's side of one disk: incarnations that serve an image when they are told to."""

    def __init__(self, disk: Disk, faults: list[str], stalls: list[Peer]) -> None:
        self.disk = disk
        self.image = bytearray(SECTORS * 512)
        self.flushes = 0
        self.ranges: list[tuple[int, int, int]] = []
        self.generation = 0
        self.rings: list[BackRing] = []
        self.faults, self.stalls = faults, stalls

    @property
    def peer(self) -> Peer:
        return Peer(DomId(1), Generation(self.generation))

    def come(self, *, take_published: bool = True) -> BackRing:
        """A new incarnation, active at once."""
        self.generation += 1
        backing = Backing.create()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ring = BackRing(backing.out_fd, backing.in_fd, theirs)
        self.rings.append(ring)
        backing.close_descriptors()
        self.disk.offer(self.peer, backing)
        self.disk.activate(self.peer, take_published)
        self.disk.attach_doorbell(self.peer, ours)
        return ring

    def go(self) -> None:
        """The serving incarnation dies."""
        self.disk.withdraw(self.peer)

    def take(self):
        """Requests on the ring, taken off it."""
        return self.rings[-1].take(SLOTS)

    def answer(self, requests, status: RspStatus = RspStatus.OK) -> None:
        """Do them, and say so."""
        ring = self.rings[-1]
        for _, op, _, length, sector, place in requests:
            at = sector * 512
            if op == Op.WRITE:
                self.image[at : at + length] = ring.out_view[place : place + length]
            elif op == Op.READ:
                ring.in_view[place : place + length] = self.image[at : at + length]
            elif op == Op.FLUSH:
                self.flushes += 1
            else:
                self.ranges.append((op, at, length))
        self.publish([ident | status << 16 for ident, *_ in requests])

    def publish(self, words: list[int]) -> None:
        """Response words, right or wrong."""
        if self.rings[-1].publish(words):
            self.rings[-1].doorbell.ring()

    async def serve(self) -> None:
        """Answer whatever is asked."""
        while True:
            self.answer(self.take())
            await trio.sleep(0.001)

    def close(self) -> None:
        for ring in self.rings:
            ring.close()


async def until(holds: Callable[[], bool]) -> None:
    """Look, again and again."""
    while True:
        if holds():
            return
        await trio.sleep(0.001)


@asynccontextmanager
async def attached(
    *, read_only: bool = False, sectors: int = SECTORS
) -> AsyncIterator[tuple[Disk, Back, trio.Nursery]]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            vbd = GuestVbd(VbdHandle(1), "vda", sectors, read_only)
            faults: list[str] = []
            stalls: list[Peer] = []
            disk = Disk(vbd, nursery, lambda _peer, what, _evidence: faults.append(what), stalls.append)
            back = Back(disk, faults, stalls)
            yield disk, back, nursery
            disk._device.close()
            nursery.cancel_scope.cancel()
    back.close()


async def test_what_is_written_is_read_again_in_every_size():
    async with attached() as (disk, back, nursery):
        back.come()
        nursery.start_soon(back.serve)
        data = random.Random(1).randbytes(11 * MIB)
        for size in (512, 4096, 4608, MIB, MAX_TRANSFER_BYTES, MAX_TRANSFER_BYTES + 512, 11 * MIB):
            await disk.write(512, data[:size])
            assert back.image[512 : 512 + size] == data[:size]
            assert await disk.read(512, size) == data[:size]
        await disk.write(0, memoryview(bytearray(b"x" * 512)))
        assert back.image[:512] == b"x" * 512


async def test_flush_discard_and_zeros_reach_the_driver():
    async with attached() as (disk, back, nursery):
        back.come()
        nursery.start_soon(back.serve)
        await disk.flush()
        await disk.discard(4096, MIB)
        await disk.write_zeroes(512, 1024)
        await disk.write_zeroes(0, 512, unmap=False)
        ranges = [(Op.DISCARD, 4096, MIB), (Op.ZERO_UNMAP, 512, 1024), (Op.WRITE_ZEROES, 0, 512)]
        assert (back.flushes, back.ranges) == (1, ranges)


async def test_a_range_that_is_longer_than_one_request_is_asked_for_in_parts():
    async with attached(sectors=5 * MAX_ZEROES_BYTES // 1024) as (disk, back, nursery):
        back.come()
        nursery.start_soon(back.serve)
        await disk.write_zeroes(0, disk.size)
        assert [length for _, _, length in back.ranges] == [MAX_ZEROES_BYTES, MAX_ZEROES_BYTES, MAX_ZEROES_BYTES // 2]
        assert [at for _, at, _ in back.ranges] == [0, MAX_ZEROES_BYTES, 2 * MAX_ZEROES_BYTES]


async def test_a_driver_that_owes_an_answer_is_told_of_and_one_that_owes_none_is_not():
    async with attached() as (disk, back, nursery):
        back.come()
        await trio.sleep(3 * STALLED_AFTER_S)
        assert back.stalls == []
        nursery.start_soon(disk.read, 0, 512)
        await until(lambda: bool(back.stalls))
        assert back.stalls == [back.peer]
        back.go()
        back.come()
        await until(lambda: len(back.stalls) > 1)
        assert back.stalls[1:] == [back.peer], "its successor, which is silent too"
        back.answer(back.take())
        told = len(back.stalls)
        await trio.sleep(3 * STALLED_AFTER_S)
        assert len(back.stalls) == told


async def test_requests_wait_for_a_driver_and_are_asked_once():
    async with attached() as (disk, back, nursery):
        nursery.start_soon(disk.write, 0, b"a" * 512)
        await wait_all_tasks_blocked()
        back.come()
        requests = back.take()
        assert [(op, sector) for _, op, _, _, sector, _ in requests] == [(Op.WRITE, 0)]
        assert back.take() == []


async def test_what_a_dead_driver_had_not_answered_is_asked_of_its_successor_oldest_first():
    async with attached() as (disk, back, nursery):
        ended: list[int] = []

        async def write(number: int) -> None:
            await disk.write(number * 4096, bytes([number]) * 4096)
            ended.append(number)

        back.come()
        for number in (1, 2, 3):
            nursery.start_soon(write, number)
            await wait_all_tasks_blocked()
        first, _, _ = back.take()
        back.answer([first])
        back.go()
        await wait_all_tasks_blocked()
        back.come()
        again = back.take()
        assert [sector for *_, sector, _ in again] == [16, 24]
        back.answer(again)
        await until(lambda: len(ended) == 3)
        assert sorted(ended) == [1, 2, 3]
        assert back.image[4096 : 4 * 4096] == b"\1" * 4096 + b"\2" * 4096 + b"\3" * 4096
        assert disk.stats().switches[-1].reposted == 2


async def test_nothing_of_a_driver_that_broke_the_rules_is_believed():
    async with attached() as (disk, back, nursery):
        back.come()
        nursery.start_soon(disk.read, 0, 512)
        await wait_all_tasks_blocked()
        ((ident, *_),) = back.take()
        back.publish([ident ^ 0x100])
        await until(lambda: bool(back.faults))
        assert back.faults == ["response to no request"]
        back.go()
        back.come(take_published=False)
        assert len(back.take()) == 1


@pytest.mark.parametrize(
    ("status", "number"),
    [(RspStatus.IO_ERROR, errno.EIO), (RspStatus.NO_SPACE, errno.EIO), (RspStatus.UNSUPPORTED, errno.EOPNOTSUPP)],
)
async def test_what_the_driver_could_not_do_is_an_error_and_the_next_request_goes_on(status, number):
    async with attached() as (disk, back, nursery):
        back.come()

        async def fail() -> None:
            await until(lambda: back.rings[-1].requests() > 0)
            back.answer(back.take(), status)

        for ask in (lambda: disk.read(0, 512), lambda: disk.write(0, bytes(512)), lambda: disk.flush()):
            nursery.start_soon(fail)
            with pytest.raises(OSError, match="vda at byte 0") as caught:
                await ask()
            assert caught.value.errno == number
        nursery.start_soon(back.serve)
        assert await disk.read(0, 512) == bytes(512)


async def test_a_place_that_is_no_sector_of_the_disk_is_never_asked():
    async with attached() as (disk, back, _):
        back.come()
        for offset, length in ((0, 0), (0, 511), (1, 512), (-512, 512), (disk.size, 512), (0, disk.size + 512)):
            with pytest.raises(ValueError, match="bytes at"):
                await disk.read(offset, length)
            with pytest.raises(ValueError, match="bytes at"):
                await disk.discard(offset, length)
        with pytest.raises(ValueError, match="bytes at"):
            await disk.write(0, b"x")
        assert back.take() == []


async def test_a_read_only_disk_is_not_written():
    async with attached(read_only=True) as (disk, back, _):
        back.come()
        for act in (disk.write(0, bytes(512)), disk.discard(0, 512), disk.write_zeroes(0, 512)):
            with pytest.raises(OSError, match="vda") as caught:
                await act
            assert caught.value.errno == errno.EROFS
        assert back.take() == []


async def test_more_requests_than_there_is_room_for_wait_in_order_and_all_are_done():
    async with attached() as (disk, back, nursery):
        back.come()
        order: list[int] = []

        async def write(number: int) -> None:
            await disk.write(number * 512, number.to_bytes(2, "little") * 256)
            order.append(number)

        count = SLOTS + 50
        for number in range(count):
            nursery.start_soon(write, number)
            if number == SLOTS:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert disk.stats().in_flight == SLOTS
        nursery.start_soon(back.serve)
        await until(lambda: len(order) == count)
        assert b"".join(n.to_bytes(2, "little") * 256 for n in range(count)) == back.image[: count * 512]


async def test_a_large_request_is_not_overtaken_for_ever_by_others():
    async with attached() as (disk, back, nursery):
        back.come()
        done: list[str] = []

        async def write(name: str, length: int) -> None:
            await disk.write(0, bytes(length))
            done.append(name)

        nursery.start_soon(write, "first", MAX_TRANSFER_BYTES)
        await wait_all_tasks_blocked()
        nursery.start_soon(write, "large", MAX_TRANSFER_BYTES)
        await wait_all_tasks_blocked()
        nursery.start_soon(write, "small", 512)
        await wait_all_tasks_blocked()
        assert len(back.take()) == 1, "the large one waits for room, and the small one behind it"
        back.go()
        back.come()
        nursery.start_soon(back.serve)
        await until(lambda: len(done) == 3)
        assert done[0] == "first"


async def test_a_request_that_is_given_up_keeps_its_place_until_it_is_answered():
    async with attached() as (disk, back, nursery):
        back.come()
        with trio.move_on_after(0.05) as patience:
            await disk.write(0, b"a" * 512)
        assert patience.cancelled_caught
        (given_up,) = back.take()
        with trio.move_on_after(0.05):
            await disk.write(512, b"b" * 512)
        back.answer([given_up, *back.take()])
        assert back.image[:1024] == b"a" * 512 + b"b" * 512
        nursery.start_soon(back.serve)
        for _ in range(3 * SLOTS):
            await disk.write(0, b"c" * 512)
        assert disk.stats().in_flight == 0


async def test_places_and_heads_are_given_back_whatever_becomes_of_their_requests():
    requests = Requests()
    for _ in range(3):
        taken = [await requests.reserve(Type.OUT, 4096) for _ in range(SLOTS)]
        assert len({request.place for request in taken}) == len({request.head for request in taken}) == SLOTS
        for request in taken:
            requests.offer(request, 0)
        for _ in range(SLOTS):
            assert requests.take_plain() is not None
        for number, request in enumerate(taken):
            if number % 2:
                requests.leave(request)
            requests.publish(request.head, 1)
            if not number % 2:
                requests.leave(request)
