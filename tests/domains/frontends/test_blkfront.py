"""The block frontend's loop, between a guest's vhost-user connection and the rings of backends, all in one process."""

import gc
import os
import select
import socket
import struct
import threading
from queue import Empty, SimpleQueue

import pytest

from domains.frontends.blkfront import Backing, BlkfrontLoop, VbdFront
from domains.frontends.device import STALLED_AGAIN_S
from domains.virtio.blk import Type
from domains.virtio.custody import Custody
from domains.virtio.in_flight import IN_FLIGHT_BYTES
from drivers.blkback.ring import BackRing
from kernel.abi.ids import VbdHandle
from kernel.abi.io.blkif import SLOTS
from tests.domains.frontends.stand import SECTORS, peer
from tests.domains.virtio.front_end import FrontEnd
from tests.domains.virtio.guest_driver import GuestDriver
from tests.promises.events import wait_until

HANDLE = VbdHandle(1)
DEADLINE_S = 10
PAGE_BYTES = 4096
"""Larger requests do not go the fast way."""


class Keeper:
    """Keeps a disk's vhost-user connection on a thread of its own, as a guest's reaper does."""

    def __init__(self, path: str) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        listening.listen(4)
        self._custody = Custody(listening)
        self._wake = os.eventfd(0)
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._wake, *self._custody.watched()], [], [])
            if self._wake in ready:
                return
            self._custody.look()

    def _stop(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.eventfd_read(self._wake)

    def hand_over(self) -> socket.socket:
        """The line for the next process that serves the disk."""
        self._stop()
        line = socket.socket(fileno=self._custody.hand_over())
        self._start()
        return line

    def close(self) -> None:
        self._stop()
        self._custody.leave()
        os.close(self._wake)


class Front:
    """A loop with one vbd. `rings` are the ends of the backends that were offered last, by generation."""

    def __init__(self, folder) -> None:
        self.path = str(folder / "vda.sock")
        self.keeper = Keeper(self.path)
        self.in_flight = os.memfd_create("in-flight")
        os.ftruncate(self.in_flight, IN_FLIGHT_BYTES)
        self.faults: SimpleQueue = SimpleQueue()
        self.stalls: SimpleQueue = SimpleQueue()
        self.rings: dict[int, BackRing] = {}
        self.guests: list[FrontEnd] = []
        self._serve()

    def _serve(self) -> None:
        vbd = VbdFront(HANDLE, "vda", SECTORS, False, self.keeper.hand_over(), self.in_flight)
        self.loop = BlkfrontLoop([vbd], lambda *fault: self.faults.put(fault), lambda *stall: self.stalls.put(stall))
        self.loop.start()

    def take_over(self) -> None:
        """Another loop goes on, as after the death of the process: with new rings, and no word from the one before."""
        self.loop.stop()
        self._serve()

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
        if generation in self.rings:
            self.rings.pop(generation).close()
        self.rings[generation] = BackRing(backing.out_fd, backing.in_fd, theirs)
        backing.close_descriptors()
        self.loop.offer(HANDLE, peer(generation), backing)
        self.loop.attach_doorbell(HANDLE, peer(generation), ours)

    def activate(self, generation: int) -> None:
        self.offer(generation)
        self.loop.activate(HANDLE, peer(generation), True)

    def take(self, generation: int, last: int) -> list[tuple[int, int]]:
        """Sector and id of each request on that ring, up to that for sector `last`, which is waited for."""
        ring = self.rings[generation]
        taken: list[tuple[int, int]] = []

        def come() -> bool:
            assert self.faults.empty(), self.faults.get()
            if ring.requests() or not ring.park():
                taken.extend((sector, ident) for ident, _, _, _, sector, _ in ring.take(SLOTS))
            return last in dict(taken)

        wait_until(come, f"a request for sector {last}")
        return taken

    def answer(self, generation: int, *idents: int) -> None:
        """Answer them: the data is on the disk."""
        ring = self.rings[generation]
        if ring.publish(list(idents)):
            ring.doorbell.ring()

    def do_one(self, generation: int) -> int:
        """Wait for a request on that ring and answer it: its sector."""
        ring = self.rings[generation]
        wait_until(lambda: ring.requests() or not ring.park(), "a request")
        ((ident, _, _, _, sector, _),) = ring.take(1)
        self.answer(generation, ident)
        return int(sector)

    def close(self) -> None:
        self.loop.stop()
        self.keeper.close()
        for guest in list(self.guests):
            self.hang_up(guest)
        for ring in self.rings.values():
            ring.close()
        os.close(self.in_flight)


@pytest.fixture
def front(tmp_path):
    made = Front(tmp_path)
    yield made
    made.close()


def write(guest: FrontEnd, sector: int, head: int = 0, length: int = 512):
    """Offer a write and kick."""
    request = guest.guest.submit(head, Type.OUT, sector, bytes(length))
    os.eventfd_write(guest.kick, 1)
    return request


def wait_done(guest: FrontEnd, request) -> None:
    wait_until(lambda: guest.guest.status(request) == 0 and guest.guest.completed(), "the request is done")


def wait_turns(front: Front) -> None:
    """Let the loop look at its rings once more."""
    for _ in range(2):
        turned = threading.Event()
        front.loop.submit(turned.set)
        assert turned.wait(DEADLINE_S)


def test_a_request_travels_to_the_backend_and_its_answer_interrupts_the_guest(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    assert front.do_one(1) == 8
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
    assert front.do_one(1) == 8
    wait_done(guest, request)
    assert len(front.loop.stats()[HANDLE].switches) == 1


def test_a_successor_gets_what_the_backend_before_it_left(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    wait_until(front.rings[1].requests, "a request")
    front.loop.withdraw(HANDLE, peer(1))
    front.activate(2)
    assert front.do_one(2) == 8
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
    assert front.do_one(2) == 8
    wait_done(guest, request)


def test_a_backend_that_owes_an_answer_is_told_of_again_and_again_and_one_that_owes_none_is_not(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    for _ in range(2):
        assert front.stalls.get(timeout=DEADLINE_S) == (HANDLE, peer(1))
    front.do_one(1)
    wait_done(guest, request)
    wait_turns(front)
    while not front.stalls.empty():
        front.stalls.get()
    with pytest.raises(Empty):
        front.stalls.get(timeout=2 * STALLED_AGAIN_S)


def test_a_guest_that_breaks_its_queue_is_named_and_served_no_more(front):
    guest = front.guest()
    front.activate(1)
    guest.guest.offer(guest.guest.size)
    os.eventfd_write(guest.kick, 1)
    assert front.faults.get(timeout=DEADLINE_S)[:3] == (HANDLE, None, "head out of range")
    write(guest, 8)
    wait_turns(front)
    assert not front.rings[1].requests()


def test_a_second_connection_waits_until_the_first_has_ended(front):
    guest = front.guest()
    front.activate(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(front.path)
        second = FrontEnd(sock, GuestDriver())
        second.send(1)
        request = write(guest, 8)
        front.do_one(1)
        wait_done(guest, request)
        assert guest.ask(11, struct.pack("<II", 0, 0)) == struct.pack("<II", 0, 1)
        front.hang_up(guest)
        assert len(sock.recv(100)) == 20, "its features"
        second.guest.close()
        second.close()


def test_a_queue_that_is_stopped_tells_how_far_it_has_come(front):
    guest = front.guest()
    front.activate(1)
    for number in range(3):
        request = write(guest, 8 + number)
        front.do_one(1)
        wait_done(guest, request)
    assert guest.ask(11, struct.pack("<II", 0, 0)) == struct.pack("<II", 0, 3)


def open_descriptors() -> int:
    """Once those are gone that belong to nobody any more: rings are released aside, a loop and its rings know each
    other, and each mapping has a descriptor of its own."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_guest_that_connects_again_and_again_leaves_no_descriptor_behind(front):
    front.activate(1)
    guest = front.guest()
    before = open_descriptors()
    for sector in range(5):
        front.hang_up(guest)
        guest = front.guest()
        request = write(guest, sector)
        assert front.do_one(1) == sector
        wait_done(guest, request)
    wait_until(lambda: open_descriptors() <= before, f"{before} descriptors again")


def test_a_successor_of_the_loop_posts_what_was_in_flight_once_and_before_anything_newer(front):
    guest = front.guest()
    front.activate(1)
    requests = {
        sector: write(guest, sector, head, length)
        for head, (sector, length) in enumerate(((24, 512), (8, 512), (16, PAGE_BYTES + 512), (40, 512)))
    }
    taken = front.take(1, 40)
    front.answer(1, dict(taken)[8])
    wait_done(guest, requests[8])
    front.take_over()
    requests[32] = write(guest, 32, 1)
    front.activate(1)
    taken = front.take(1, 32)
    assert [sector for sector, _ in taken] == [24, 16, 40, 32]
    front.answer(1, *(ident for _, ident in taken))
    wait_until(lambda: all(guest.guest.status(request) == 0 for request in requests.values()), "all are done")
    wait_turns(front)
    assert sorted(head for head, _ in guest.guest.completed()) == [0, 1, 2, 3]
    assert not front.rings[1].requests()
    assert front.faults.empty()


def test_a_successor_of_the_loop_has_the_guest_look_since_its_interrupt_may_be_lost(front):
    guest = front.guest()
    front.activate(1)
    request = write(guest, 8)
    front.do_one(1)
    wait_done(guest, request)
    wait_until(lambda: _read(guest.call), "the interrupt")
    front.take_over()
    wait_turns(front)
    assert _read(guest.call), "another interrupt"


def test_successors_one_after_the_other_leave_no_descriptor_behind(front):
    guest = front.guest()
    front.activate(1)
    before = open_descriptors()
    for sector in range(5):
        front.take_over()
        front.activate(1)
        request = write(guest, sector)
        assert front.do_one(1) == sector
        wait_done(guest, request)
    wait_until(lambda: open_descriptors() <= before, f"{before} descriptors again")


def test_a_loop_that_is_stopped_has_given_everything_back(tmp_path):
    before = open_descriptors()
    use(Front(tmp_path))
    assert open_descriptors() == before


def use(front: Front) -> None:
    """With a guest, an active backend and a standby. A mapping has a descriptor of its own while somebody names it."""
    guest = front.guest()
    front.activate(1)
    front.offer(2)
    request = write(guest, 8)
    front.do_one(1)
    wait_done(guest, request)
    front.close()
