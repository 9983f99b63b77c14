"""The block backend's loop, over real rings and real files."""

import errno
import os
import socket
import threading
from queue import SimpleQueue

import pytest

from domains.frontends.backing import Backing
from domains.runtime.faults import FaultPoints
from drivers.blkback.errors import status_of
from drivers.blkback.loop import ServeLoop
from kernel.abi.ids import VbdHandle
from kernel.abi.io.blkif import POOL_AT, RING_BYTES, SLOTS, SMALL_RING_BYTES, Op, RspStatus
from tests.drivers.blkback.front_ring import SECTORS, FrontRing

OK = RspStatus.OK
DEADLINE_S = 20


@pytest.fixture
def faults():
    return SimpleQueue()


@pytest.fixture
def loop(faults):
    made = ServeLoop(on_fault=lambda *fault: faults.put(fault), faults=FaultPoints())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(512 * SECTORS))
    return path


def activate(loop, front, image, flags=os.O_RDWR):
    loop.activate(front.handle, os.open(image, flags))


@pytest.fixture
def front(loop, image):
    made = FrontRing(loop)
    activate(loop, made, image)
    yield made
    made.close()


def test_a_write_is_in_the_image_and_is_read_again(front, image):
    front.backing.out_view[POOL_AT : POOL_AT + 1024] = b"w" * 1024
    front.post(1, Op.WRITE, 1024, 8, POOL_AT)
    assert front.answers(1) == [(1, OK)]
    assert image.read_bytes()[4096:5120] == b"w" * 1024
    front.post(2, Op.READ, 1024, 8, POOL_AT + 4096)
    assert front.answers(1) == [(2, OK)]
    assert bytes(front.backing.in_view[POOL_AT + 4096 : POOL_AT + 5120]) == b"w" * 1024


def test_flush_and_discard_are_answered(front, image):
    image.write_bytes(b"x" * 512 * SECTORS)
    front.post(1, Op.FLUSH)
    front.post(2, Op.DISCARD, 512 * 16, 8)
    front.post(3, Op.FLUSH)
    assert front.answers(3) == [(1, OK), (2, OK), (3, OK)]
    assert image.read_bytes()[4096 : 4096 + 8192] == bytes(8192)
    assert image.stat().st_size == 512 * SECTORS


@pytest.mark.parametrize("op", [Op.WRITE_ZEROES, Op.ZERO_UNMAP])
def test_zeros_are_in_the_image_and_nothing_beside_them(front, image, op):
    image.write_bytes(b"x" * 512 * SECTORS)
    front.post(1, op, 512 * 16, 8)
    front.post(2, op, 512, 127)
    front.post(3, op)
    front.post(4, op, 1024, 127)
    assert sorted(front.answers(4)) == [(1, OK), (2, OK), (3, OK), (4, RspStatus.RANGE)]
    assert image.read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * 512 * 103 + bytes(512)


def test_a_ring_full_of_requests_is_answered_many_times_over(front):
    for lap in range(5):
        for ident in range(SLOTS):
            front.backing.post(ident, Op.READ, 512, ident % SECTORS, POOL_AT + 512 * ident)
        front.in_flight += SLOTS
        front.backing.publish()
        assert front.answers(SLOTS) == [(ident, OK) for ident in range(SLOTS)], lap


def test_image_and_ring_may_come_in_either_order(loop, image):
    handle = VbdHandle(9)
    loop.activate(handle, os.open(image, os.O_RDWR))
    front = FrontRing(loop, 9)
    front.post(1, Op.READ, 512, 0, POOL_AT)
    assert front.answers(1) == [(1, OK)]
    front.close()


def test_without_its_image_a_vbd_is_not_served(loop, image):
    front = FrontRing(loop)
    front.post(1, Op.READ, 512, 0, POOL_AT)
    wait_turn(loop)
    assert not front.backing.has_responses()
    activate(loop, front, image)
    assert front.answers(1) == [(1, OK)]
    front.close()


def wait_turn(loop):
    """Wait until the loop has done what was submitted before."""
    turned = threading.Event()
    loop.submit(turned.set)
    assert turned.wait(20), "the loop does not turn"


def test_a_ring_made_anew_takes_the_place_of_the_old_one(loop, front, image):
    again = FrontRing(loop)
    again.post(7, Op.READ, 512, 0, POOL_AT)
    assert again.answers(1) == [(7, OK)]
    again.close()


def test_a_vbd_that_was_detached_is_served_no_more(loop, front):
    loop.disconnect(front.handle)
    wait_turn(loop)
    front.post(1, Op.READ, 512, 0, POOL_AT)
    wait_turn(loop)
    assert not front.backing.has_responses()


def test_what_the_guest_may_not_do_is_refused(loop, image):
    front = FrontRing(loop, read_only=True)
    activate(loop, front, image, os.O_RDONLY)
    front.post(1, Op.WRITE, 512, 0, POOL_AT)
    front.post(2, Op.READ, 512, SECTORS, POOL_AT)
    front.post(3, 77)
    front.post(4, Op.READ, 512, 0, POOL_AT)
    assert front.answers(4) == [(1, RspStatus.READ_ONLY), (2, RspStatus.RANGE), (3, RspStatus.UNSUPPORTED), (4, OK)]
    front.close()


def test_an_image_cut_short_under_the_driver_is_an_error_to_the_guest_alone(front, image):
    os.truncate(image, 512)
    front.post(1, Op.READ, 1024, 0, POOL_AT)
    front.post(2, Op.READ, 512, 8, POOL_AT)
    front.post(3, Op.READ, 512, 0, POOL_AT)
    assert front.answers(3) == [(1, RspStatus.IO_ERROR), (2, RspStatus.IO_ERROR), (3, OK)]


def test_a_full_disk_is_an_error_to_the_guest_alone(loop):
    """/dev/full answers every write with ENOSPC."""
    front = FrontRing(loop)
    activate(loop, front, "/dev/full")
    front.post(1, Op.WRITE, 512, 0, POOL_AT)
    front.post(2, Op.READ, 512, 0, POOL_AT)
    assert front.answers(2) == [(1, RspStatus.NO_SPACE), (2, OK)]
    front.close()


def test_an_image_that_cannot_be_flushed_is_an_error_to_the_guest_alone(loop):
    front = FrontRing(loop)
    reading, writing = os.pipe()
    loop.activate(front.handle, os.dup(writing))
    front.post(1, Op.FLUSH)
    front.post(2, Op.DISCARD, 512)
    front.post(3, Op.WRITE, 512, 0, POOL_AT)
    assert sorted(front.answers(3)) == [(1, RspStatus.IO_ERROR), (2, RspStatus.IO_ERROR), (3, RspStatus.IO_ERROR)]
    front.close()
    os.close(reading)
    os.close(writing)


def test_a_failed_flush_is_told_once_on_each_ring_of_a_vbd(loop, tmp_path):
    """The kernel tells it once, and a frontend's process may have died with the answer in its hands."""
    front = FrontRing(loop)
    reading, writing = os.pipe()
    loop.activate(front.handle, os.dup(writing))
    front.post(1, Op.FLUSH)
    assert front.answers(1) == [(1, RspStatus.IO_ERROR)]
    wait_turn(loop)
    os.dup2(os.open(tmp_path / "flushes", os.O_RDWR | os.O_CREAT), loop._vbds[front.handle].image)
    front.post(2, Op.FLUSH)
    assert front.answers(1) == [(2, RspStatus.OK)]
    successor = FrontRing(loop)
    for head, op in enumerate((Op.DISCARD, Op.FLUSH, Op.FLUSH)):
        successor.post(head, op)
        assert successor.answers(1) == [(head, RspStatus.IO_ERROR if head == 1 else RspStatus.OK)]
    for each in (front, successor):
        each.close()
    os.close(reading)
    os.close(writing)


def test_jobs_of_an_earlier_ring_are_done_before_those_of_the_next(loop, image):
    """So that no late discard of a process that has died undoes what was written after its successor's was answered."""
    front = FrontRing(loop)
    activate(loop, front, image)
    for head in range(100):
        front.post(head, Op.DISCARD, 512 * SECTORS)
    successor = FrontRing(loop)
    successor.backing.out_view[POOL_AT : POOL_AT + 512] = b"n" * 512
    successor.post(1, Op.DISCARD, 512 * SECTORS)
    assert successor.answers(1) == [(1, RspStatus.OK)]
    successor.post(2, Op.WRITE, 512, 0, POOL_AT)
    successor.post(3, Op.FLUSH)
    assert successor.answers(2) == [(2, RspStatus.OK), (3, RspStatus.OK)]
    assert image.read_bytes()[:512] == b"n" * 512
    for each in (front, successor):
        each.close()


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.EIO, RspStatus.IO_ERROR),
        (errno.ENOSPC, RspStatus.NO_SPACE),
        (errno.EDQUOT, RspStatus.NO_SPACE),
        (errno.EROFS, RspStatus.READ_ONLY),
        (errno.EOPNOTSUPP, RspStatus.UNSUPPORTED),
        (None, RspStatus.IO_ERROR),
    ],
)
def test_each_errno_has_its_status(number, status):
    assert status_of(OSError(number, "x")) == status


BROKEN = {
    "place in the header": ((1, Op.READ, 0, 512, 0, 0), 1),
    "flags": ((1, Op.READ, 1, 512, 0, POOL_AT), 1),
    "index ahead by a ring and one": ((1, Op.READ, 0, 512, 0, POOL_AT), SLOTS + 1),
    "index runs back": ((1, Op.READ, 0, 512, 0, POOL_AT), 0xFFFF_FFFF),
}


@pytest.mark.parametrize(("fields", "ahead"), BROKEN.values(), ids=BROKEN)
def test_a_frontend_that_breaks_the_ring_is_named_and_others_are_served(loop, front, faults, image, fields, ahead):
    other = FrontRing(loop, 2)
    activate(loop, other, image)
    front.post_raw(fields, ahead=ahead)
    handle, _, evidence = faults.get(timeout=DEADLINE_S)
    assert handle == front.handle
    assert evidence
    other.post(1, Op.READ, 512, 0, POOL_AT)
    assert other.answers(1) == [(1, OK)]
    assert faults.empty()
    other.close()


def test_a_small_ring_is_served_and_what_is_beyond_it_is_the_frontends_fault(loop, faults, image):
    front = FrontRing(loop, 2, ring_bytes=SMALL_RING_BYTES)
    activate(loop, front, image)
    front.post(1, Op.READ, 512, 0, SMALL_RING_BYTES - 512)
    assert front.answers(1) == [(1, OK)]
    front.post(2, Op.READ, 512, 0, SMALL_RING_BYTES)
    assert faults.get(timeout=DEADLINE_S)[:2] == (2, "place outside the pool")
    front.close()


@pytest.mark.parametrize(("out_bytes", "in_bytes"), [(RING_BYTES, SMALL_RING_BYTES), (SMALL_RING_BYTES, RING_BYTES)])
def test_grants_of_two_sizes_are_the_frontends_fault(loop, faults, out_bytes, in_bytes):
    out, into = Backing.create(out_bytes), Backing.create(in_bytes)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop.connect(VbdHandle(3), SECTORS, False, os.dup(out.out_fd), os.dup(into.in_fd), theirs)
    assert faults.get(timeout=DEADLINE_S)[:2] == (3, "grant is not sealed memory")
    ours.close()
    out.release()
    into.release()


@pytest.mark.parametrize("ring_bytes", [RING_BYTES - 4096, SMALL_RING_BYTES + 4096, 1 << 30])
def test_a_grant_of_another_size_is_the_frontends_fault(loop, faults, ring_bytes):
    memory = [os.memfd_create("grant", os.MFD_ALLOW_SEALING) for _ in range(2)]
    for descriptor in memory:
        os.ftruncate(descriptor, ring_bytes)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop.connect(VbdHandle(3), SECTORS, False, *memory, theirs)
    handle, what, evidence = faults.get(timeout=DEADLINE_S)
    assert (handle, what) == (3, "grant is not sealed memory")
    assert f"{ring_bytes} bytes" in evidence
    ours.close()


def test_memory_that_is_not_sealed_is_the_frontends_fault(loop, faults):
    backing = Backing.create()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    plain = os.memfd_create("plain")
    loop.connect(VbdHandle(3), SECTORS, False, plain, os.dup(backing.in_fd), theirs)
    assert faults.get(timeout=DEADLINE_S)[:2] == (3, "grant is not sealed memory")
    assert theirs.fileno() == -1
    ours.close()
    backing.release()


def test_a_busy_vbd_does_not_starve_another(loop, front, image):
    """The busy one has a ring full waiting all the time; the other's requests are answered one by one."""
    other = FrontRing(loop, 2)
    activate(loop, other, image)
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            for ident in range(SLOTS):
                front.backing.post(ident, Op.READ, 65536, 0, POOL_AT)
            front.in_flight += SLOTS
            front.backing.publish()
            front.answers(SLOTS)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for ident in range(50):
            other.post(ident, Op.READ, 512, 0, POOL_AT)
            assert other.answers(1) == [(ident, OK)]
    finally:
        stop.set()
        busy.join()
        other.close()


def test_a_doorbell_that_nobody_answers_does_not_stop_the_loop(loop, front):
    """The frontend never takes its rings off the doorbell: the backend drops what does not fit."""
    for ident in range(600):
        front.post(ident, Op.READ, 512, 0, POOL_AT)
        while not front.backing.has_responses():
            wait_turn(loop)
        front.in_flight -= len(front.backing.responses(front.in_flight))
        front.backing.park()
    front.post(1, Op.READ, 512, 0, POOL_AT)
    front.answers(1)


def test_a_frontend_that_hangs_up_does_not_keep_the_loop_busy(loop, front):
    front.backing.doorbell.close()
    wait_turn(loop)
    turns = loop.turns
    threading.Event().wait(0.05)
    assert loop.turns - turns < 5


def test_a_stopped_loop_has_given_everything_back(faults, image):
    before = len(os.listdir("/proc/self/fd"))
    loop = ServeLoop(on_fault=lambda *fault: faults.put(fault))
    loop.start()
    front = FrontRing(loop)
    activate(loop, front, image)
    front.post(1, Op.WRITE, 512, 0, POOL_AT)
    front.answers(1)
    loop.stop()
    front.close()
    assert len(os.listdir("/proc/self/fd")) == before
