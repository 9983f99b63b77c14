"""The block frontend's loop, between a guest's vhost-user connection and the rings of backends, all in one process."""

import os
import socket
import struct
import threading
from queue import SimpleQueue

import pytest

from domains.frontends.blkfront import Backing, BlkfrontLoop, VbdFront
from domains.virtio.blk import Type
from drivers.blkback.ring import BackRing
from kernel.abi.ids import VbdHandle
from tests.domains.frontends.stand import SECTORS, peer
from tests.domains.virtio.front_end import FrontEnd
from tests.domains.virtio.guest_driver import GuestDriver
from tests.promises.events import wait_until

HANDLE = VbdHandle(1)
DEADLINE_S = 10


class Front:
    """A loop with one vbd. `rings` are the ends of the backends that were offered, by generation."""

    def __init__(self, folder) -> None:
        self.path = str(folder / "vda.sock")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(self.path)
        listening.listen(4)
        self.faults: SimpleQueue = SimpleQueue()
        self.loop = BlkfrontLoop([VbdFront(HANDLE, "vda", SECTORS, False, listening)], lambda *f: self.faults.put(f))
        self.rings: dict[int, BackRing] = {}
        self.guests: list[FrontEnd] = []
        self.loop.start()

    def guest(self) -> FrontEnd:
        """A guest that has connected, and set up its queue."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        self.guests.append(FrontEnd(sock, GuestDriver()))
        self.guests[-1].set_up()
        return self.guests[-1]

    def hang_up(self, guest: FrontEnd) -> None:
        self.guests.remove(guest)
        guest.close()
        guest.guest.close()

    def offer(self, generation: int) -> None:
        backing = Backing.create()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.rings[generation] = BackRing(backing.out_fd, backing.in_fd, theirs)
        backing.close_descriptors()
        self.loop.offer(HANDLE, peer(generation), backing)
        self.loop.attach_doorbell(HANDLE, peer(generation), ours)

    def activate(self, generation: int) -> None:
        self.offer(generation)
        self.loop.activate(HANDLE, peer(generation), True)

    def answer(self, generation: int) -> int:
        """Wait for a request on that ring and answer it: its sector."""
        ring = self.rings[generation]
        wait_until(lambda: ring.requests() or not ring.park(), "a request")
        ((ident, _, _, _, sector, _),) = ring.take(1)
        if ring.publish([ident]):
            ring.doorbell.ring()
        return int(sector)

    def close(self) -> None:
        self.loop.stop()
        for guest in list(self.guests):
            self.hang_up(guest)
        for ring in self.rings.values():
            ring.close()


@pytest.fixture
def front(tmp_path):
    made = Front(tmp_path)
    yield made
    made.close()


def write(guest: FrontEnd, sector: int, head: int = 0):
    """Offer a write and kick."""
    request = guest.guest.submit(head, Type.OUT, sector, bytes(512))
    os.eventfd_write(guest.kick, 1)
    return request


def wait_done(guest: FrontEnd, request) -> None:
    wait_until(lambda: guest.guest.status(request) == 0 and guest.guest.completed(), "the request is done")


def test_a_request_travels_to_the_backend_and_its_answer_interrupts_the_guest(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    assert front.answer(1) == 8
    wait_done(guest, request)
    wait_until(lambda: _read(guest.call), "the interrupt")


def _read(event: int) -> int:
    try:
        return os.eventfd_read(event)
    except BlockingIOError:
        return 0


def test_a_standby_that_is_gone_disturbs_nobody(front):
    guest = front.guest()
    front.activate(1)
    front.offer(2)
    front.loop.withdraw(HANDLE, peer(2))
    request = write(guest, 8)
    assert front.answer(1) == 8
    wait_done(guest, request)
    assert len(front.loop.stats()[HANDLE].switches) == 1


def test_a_successor_gets_what_the_backend_before_it_left(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    wait_until(front.rings[1].requests, "a request")
    front.loop.withdraw(HANDLE, peer(1))
    front.activate(2)
    assert front.answer(2) == 8
    wait_done(guest, request)
    switch = front.loop.stats()[HANDLE].switches[-1]
    assert (switch.taken, switch.reposted) == (0, 1)
    assert switch.outage_s > 0


def test_a_backend_that_lies_is_named_and_its_successor_serves(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    wait_until(front.rings[1].requests, "a request")
    front.rings[1].lie(index=True)
    assert front.faults.get(timeout=DEADLINE_S)[:3] == (HANDLE, peer(1), "rsp_prod runs ahead")
    front.activate(2)
    assert front.answer(2) == 8
    wait_done(guest, request)


def test_a_guest_that_breaks_its_queue_is_named_and_hung_up_on(front):
    guest = front.guest()
    front.activate(1)
    guest.guest.offer(guest.guest.size)
    os.eventfd_write(guest.kick, 1)
    assert front.faults.get(timeout=DEADLINE_S)[:3] == (HANDLE, None, "head out of range")
    assert guest.socket.recv(1) == b""


def test_a_second_connection_is_refused_and_the_first_goes_on(front):
    guest = front.guest()
    front.activate(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as second:
        second.connect(front.path)
        second.settimeout(DEADLINE_S)
        assert second.recv(1) == b""
    request = write(guest, 8)
    front.answer(1)
    wait_done(guest, request)


def test_a_queue_that_is_stopped_tells_how_far_it_has_come(front):
    guest = front.guest()
    front.activate(1)
    for number in range(3):
        request = write(guest, 8 + number)
        front.answer(1)
        wait_done(guest, request)
    assert guest.ask(11, struct.pack("<II", 0, 0)) == struct.pack("<II", 0, 3)


def test_a_guest_that_connects_again_and_again_leaves_no_descriptor_behind(front):
    front.activate(1)
    guest = front.guest()
    before = len(os.listdir("/proc/self/fd"))
    for sector in range(5):
        front.hang_up(guest)
        guest = wait_connected(front)
        request = write(guest, sector)
        assert front.answer(1) == sector
        wait_done(guest, request)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, f"{before} descriptors again")


def wait_connected(front: Front) -> FrontEnd:
    """The next guest, once the loop has seen that the one before is gone."""

    def connected() -> FrontEnd | None:
        try:
            return front.guest()
        except (EOFError, OSError):
            front.hang_up(front.guests[-1])
            return None

    guest: FrontEnd = wait_until(connected, "the next guest is let in")
    return guest


def test_a_loop_that_is_stopped_has_given_everything_back(tmp_path):
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):  # rings of the tests before, which are released aside
            thread.join()
    before = len(os.listdir("/proc/self/fd"))
    use(Front(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def use(front: Front) -> None:
    """With a guest, an active backend and a standby. A mapping has a descriptor of its own while somebody names it."""
    guest = front.guest()
    front.activate(1)
    front.offer(2)
    request = write(guest, 8)
    front.answer(1)
    wait_done(guest, request)
    front.close()
