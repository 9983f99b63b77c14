"""A vbd's data path: from the virtqueue to the ring and back, over the deaths and lies of its backends."""

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from domains.frontends.backing import RingBroken
from domains.frontends.vbd import Link, Vbd
from domains.virtio.blk import Type
from domains.virtio.queue import QueueFault
from kernel.abi.io.blkif import MAX_BYTES, PROD, RESPONSES_AT, SLOTS, SMALL_RING_BYTES, Op, RspStatus
from tests.domains.frontends.stand import SECTORS, Stand
from tests.domains.virtio.guest_driver import NEXT, SLOTS_AT, WRITE


def test_a_write_reaches_the_pool_and_its_answer_the_guest(stand):
    stand.activate()
    request = stand.guest.submit(0, Type.OUT, 8, b"x" * 1024, pieces=2)
    assert stand.vbd.serve()
    ((_, op, flags, length, sector, place),) = waiting = stand.waiting()
    assert (op, flags, length, sector) == (Op.WRITE, 0, 1024, 8)
    assert bytes(stand.ring.out_view[place : place + length]) == b"x" * 1024
    stand.answer(*waiting)
    assert stand.vbd.serve()
    assert stand.guest.completed() == [(0, 1)]
    assert stand.guest.status(request) == 0
    assert not stand.vbd.serve()


@pytest.mark.parametrize("pieces", [1, 8])
def test_a_read_comes_back_with_its_data(stand, pieces):
    stand.activate()
    request = stand.guest.submit(0, Type.IN, 8, 4096, pieces=pieces)
    stand.vbd.serve()
    stand.answer(*stand.waiting(), fill=b"r")
    stand.vbd.serve()
    assert stand.guest.completed() == [(0, 4097)]
    assert stand.guest.data(request) == b"r" * 4096


def test_data_of_a_failed_read_stays_in_the_pool(stand):
    stand.activate()
    request = stand.guest.submit(0, Type.IN, 8, 512)
    stand.vbd.serve()
    stand.answer(*stand.waiting(), fill=b"r", status=RspStatus.IO_ERROR)
    stand.vbd.serve()
    assert stand.guest.status(request) == 1
    assert stand.guest.data(request) == bytes(512)


@pytest.mark.parametrize(("status", "seen"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 1), (5, 2)])
def test_each_status_of_a_backend_is_one_of_virtio(stand, status, seen):
    stand.activate()
    request = stand.guest.submit(0, Type.FLUSH, 0, 0)
    stand.vbd.serve()
    ((_, op, *_),) = waiting = stand.waiting()
    assert op == Op.FLUSH
    stand.answer(*waiting, status=status)
    stand.vbd.serve()
    assert stand.guest.status(request) == seen


@pytest.mark.parametrize(
    ("kind", "flags", "posted"),
    [
        (Type.DISCARD, 0, Op.DISCARD),
        (Type.WRITE_ZEROES, 0, Op.WRITE_ZEROES),
        (Type.WRITE_ZEROES, 1, Op.ZERO_UNMAP),
    ],
)
def test_a_request_for_a_range_is_passed_on_and_again_to_a_successor(stand, kind, flags, posted):
    stand.activate()
    request = stand.guest.submit(0, kind, 0, struct.pack("<QII", 16, 32, flags))
    stand.vbd.serve()
    for _ in range(2):
        ((_, op, ring_flags, length, sector, place),) = waiting = stand.waiting()
        assert (op, ring_flags, length, sector, place) == (posted, 0, 32 * 512, 16, 0)
        stand.vbd.withdraw()
        stand.activate()
    waiting = stand.waiting()
    stand.answer(*waiting)
    stand.vbd.serve()
    assert stand.guest.status(request) == 0


HERE = {
    "beyond the end": (Type.IN, SECTORS, 512, 1),
    "over the end": (Type.OUT, SECTORS - 1, bytes(1024), 1),
    "far beyond": (Type.IN, (1 << 64) - 1, 512, 1),
    "half a sector": (Type.IN, 0, 256, 1),
    "no data": (Type.IN, 0, 0, 1),
    "discard beyond the end": (Type.DISCARD, 0, struct.pack("<QII", SECTORS, 1, 0), 1),
    "discard of 2⁶⁴": (Type.DISCARD, 0, struct.pack("<QII", (1 << 64) - 1, 8, 0), 1),
    "discard that wants zeros": (Type.DISCARD, 0, struct.pack("<QII", 0, 8, 1), 2),
    "zeros beyond the end": (Type.WRITE_ZEROES, 0, struct.pack("<QII", SECTORS, 1, 0), 1),
    "zeros over the end": (Type.WRITE_ZEROES, 0, struct.pack("<QII", SECTORS - 1, 2, 1), 1),
    "zeros of 2⁶⁴": (Type.WRITE_ZEROES, 0, struct.pack("<QII", (1 << 64) - 1, 8, 1), 1),
    "zeros with an unknown flag": (Type.WRITE_ZEROES, 0, struct.pack("<QII", 0, 8, 2), 2),
    "zeros in two segments": (Type.WRITE_ZEROES, 0, struct.pack("<QIIQII", 0, 8, 0, 8, 8, 0), 1),
    "zeros without a range": (Type.WRITE_ZEROES, 0, b"", 1),
    "serial": (Type.GET_ID, 0, 20, 0),
    "unknown type": (77, 0, 512, 2),
}


@pytest.mark.parametrize(("kind", "sector", "data", "status"), HERE.values(), ids=HERE)
def test_what_cannot_be_is_answered_without_the_backend(stand, kind, sector, data, status):
    stand.activate()
    request = stand.guest.submit(0, kind, sector, data)
    stand.vbd.serve()
    assert stand.waiting() == []
    assert stand.guest.status(request) == status
    assert len(stand.guest.completed()) == 1


WHOLE = MAX_BYTES + MAX_BYTES // 2
"""A request in two parts, the second shorter."""


def test_a_write_larger_than_any_on_the_ring_goes_in_parts(stand):
    stand.activate()
    data = bytes(range(256)) * (WHOLE // 256)
    request = stand.guest.submit(0, Type.OUT, 8, data, pieces=3)
    asked, written = [], b""
    for _ in range(2):
        stand.vbd.serve()
        ((ident, _, _, length, sector, place),) = waiting = stand.waiting()
        asked.append((length, sector))
        written += stand.ring.out_view[place : place + length]
        assert ident & 0xFF == 0
        assert stand.guest.completed() == []
        stand.answer(*waiting)
    stand.vbd.serve()
    assert asked == [(MAX_BYTES, 8), (WHOLE - MAX_BYTES, 8 + MAX_BYTES // 512)]
    assert written == data
    assert stand.guest.completed() == [(0, 1)]
    assert stand.guest.status(request) == 0


def test_a_read_in_parts_survives_the_death_of_its_backend_between_them(stand):
    stand.activate()
    request = stand.guest.submit(0, Type.IN, 0, WHOLE, pieces=3)
    stand.vbd.serve()
    stand.answer(*stand.waiting(), fill=b"a")
    stand.vbd.serve()
    stand.vbd.withdraw()
    stand.activate()
    ((_, _, _, length, sector, _),) = waiting = stand.waiting()
    assert (length, sector) == (WHOLE - MAX_BYTES, MAX_BYTES // 512)
    stand.answer(*waiting, fill=b"b")
    stand.vbd.serve()
    assert stand.guest.completed() == [(0, WHOLE + 1)]
    assert stand.guest.data(request) == b"a" * MAX_BYTES + b"b" * (WHOLE - MAX_BYTES)


def test_in_a_small_ring_a_request_goes_in_smaller_parts_and_to_a_successor():
    stand = Stand(ring_bytes=SMALL_RING_BYTES)
    most = 3 << 19
    stand.activate()
    data = bytes(range(256)) * (2 * most // 256)
    request = stand.guest.submit(0, Type.OUT, 8, data, pieces=4)
    written = b""
    for _ in range(2):
        stand.vbd.serve()
        stand.vbd.withdraw()
        stand.activate()
        ((_, _, _, length, _, place),) = waiting = stand.waiting()
        assert length == most
        written += stand.ring.out_view[place : place + length]
        stand.answer(*waiting)
    stand.vbd.serve()
    assert written == data
    assert stand.guest.status(request) == 0
    stand.close()


@pytest.mark.parametrize("good", [0, 1])
def test_a_part_that_failed_fails_the_whole_and_nothing_of_it_is_left_at_its_head(stand, good):
    stand.activate()
    request = stand.guest.submit(0, Type.OUT, 0, bytes(WHOLE), pieces=3)
    for _ in range(good):
        stand.vbd.serve()
        stand.answer(*stand.waiting())
    stand.vbd.serve()
    stand.answer(*stand.waiting(), status=RspStatus.IO_ERROR)
    stand.vbd.serve()
    assert stand.guest.completed() == [(0, 1)]
    assert stand.guest.status(request) == 1
    following = stand.guest.submit(0, Type.IN, 0, MAX_BYTES, pieces=2)
    stand.vbd.serve()
    stand.answer(*stand.waiting())
    stand.vbd.serve()
    assert stand.guest.completed() == [(0, MAX_BYTES + 1)]
    assert stand.guest.status(following) == 0


def test_a_read_only_vbd_takes_no_writes():
    stand = Stand(read_only=True)
    stand.activate()
    written = stand.guest.submit(0, Type.OUT, 0, bytes(512))
    discarded = stand.guest.submit(1, Type.DISCARD, 0, struct.pack("<QII", 0, 8, 0))
    zeroed = stand.guest.submit(3, Type.WRITE_ZEROES, 0, struct.pack("<QII", 0, 8, 1))
    stand.guest.submit(2, Type.IN, 0, 512)
    stand.vbd.serve()
    assert [op for _, op, *_ in stand.waiting()] == [Op.READ]
    assert [stand.guest.status(r) for r in (written, discarded, zeroed)] == [1, 1, 1]
    stand.close()


def test_without_a_backend_requests_wait_in_the_virtqueue(stand):
    stand.guest.submit(0, Type.OUT, 0, b"a" * 512)
    assert not stand.vbd.serve()
    assert stand.vbd.park()
    stand.activate()
    assert stand.vbd.serve()
    assert len(stand.waiting()) == 1


def test_without_room_requests_wait_in_the_virtqueue_and_come_later():
    stand = Stand(size=256)
    stand.activate()
    for head in range(128):
        stand.guest.chain(head, [(0x5000, 16, 0, 0), (0x200000, 262144, WRITE, 0), (0x6000 + head, 1, WRITE, 0)])
    answered = 0
    while answered < 128:
        stand.vbd.serve()
        waiting = stand.waiting()
        assert 0 < len(waiting) <= 24
        assert not stand.vbd.serve(), "nothing to do until there is room"
        assert stand.vbd.park()
        stand.answer(*waiting)
        answered += len(waiting)
        stand.vbd.serve()
    assert sorted(head for head, _ in stand.guest.completed()) == list(range(128))
    stand.close()


def test_a_successor_gets_what_was_not_answered_oldest_first(stand):
    stand.activate()
    for head in (5, 3, 9, 1):
        stand.guest.submit(head, Type.OUT, head, bytes([head]) * 512)
    stand.vbd.serve()
    waiting = stand.waiting()
    stand.answer(waiting[1])
    stand.vbd.withdraw()
    assert not stand.vbd.serve(), "a ring that was withdrawn waits for the word whether it may be believed"
    assert stand.activate() is None
    assert stand.guest.completed() == [(3, 1)]
    again = stand.waiting()
    assert [sector for *_, sector, _ in again] == [5, 9, 1]
    assert [bytes(stand.ring.out_view[place : place + 2]) for *_, place in again] == [b"\5\5", b"\t\t", b"\1\1"]
    stand.answer(*again)
    stand.vbd.serve()
    assert [head for head, _ in stand.guest.completed()] == [5, 9, 1]
    switch = stand.vbd.stats().switches[-1]
    assert (switch.taken, switch.reposted) == (1, 3)


def test_after_a_fault_nothing_of_the_predecessor_is_taken(stand):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.vbd.serve()
    stand.answer(*stand.waiting(), fill=b"x")
    stand.vbd.withdraw()
    stand.activate(take_published=False)
    assert stand.guest.completed() == []
    assert len(stand.waiting()) == 1


def test_what_is_wrong_in_a_dead_ring_is_told_and_the_rest_is_posted_again(stand):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.vbd.serve()
    ((ident, *_),) = stand.waiting()
    stand.ring.publish([ident ^ 0x100])
    stand.vbd.withdraw()
    broken = stand.activate()
    assert broken is not None
    assert broken.what == "response to no request"
    assert stand.guest.completed() == []
    assert len(stand.waiting()) == 1


def publish_words(stand, words, *, prod=None):
    """Write response words as a backend that keeps no rules."""
    for place, word in enumerate(words):
        struct.pack_into("<I", stand.ring.in_view, RESPONSES_AT + 4 * place, word)
    stand.ring.in_view[4 * PROD : 4 * PROD + 4] = struct.pack("<I", len(words) if prod is None else prod)


LIES = {
    "an id never used": lambda ident: ([ident ^ 0x7F], None),
    "the id of an earlier request": lambda ident: ([ident ^ 0x100], None),
    "an answer given twice": lambda ident: ([ident, ident], None),
    "a status that there is not": lambda ident: ([ident | (max(RspStatus) + 1) << 16], None),
    "the largest word": lambda ident: ([0xFFFF_FFFF], None),
    "an index that runs ahead by one": lambda ident: ([ident], 3),
    "an index that runs ahead by a ring": lambda ident: ([ident], 1 + SLOTS),
    "an index that runs back": lambda ident: ([], 0xFFFF_FFFF),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_backend_that_lies_about_its_answers_is_found_out(stand, lie):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.guest.submit(1, Type.IN, 1, 512)
    stand.vbd.serve()
    (ident, *_), _ = stand.waiting()
    publish_words(stand, *lie(ident)[:1], prod=lie(ident)[1])
    with pytest.raises(RingBroken):
        stand.vbd.serve()
    stand.vbd.distrust()
    assert stand.vbd.link is Link.BROKEN
    assert not stand.vbd.serve()
    stand.activate()
    left = 2 - len(stand.guest.completed())
    assert len(stand.waiting()) == left


def test_an_answer_to_a_head_used_again_is_not_taken_for_the_old_one(stand):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.vbd.serve()
    (old,) = stand.waiting()
    stand.answer(old)
    stand.vbd.serve()
    stand.guest.submit(0, Type.IN, 1, 512)
    stand.vbd.serve()
    stand.waiting()
    stand.answer(old)
    with pytest.raises(RingBroken):
        stand.vbd.serve()


def test_a_guest_that_offers_a_buffer_twice_is_found_out(stand):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.guest.offer(0)
    with pytest.raises(QueueFault, match="twice"):
        stand.vbd.serve()
    assert len(stand.waiting()) == 1


def test_a_guest_that_changes_its_request_in_flight_changes_nothing(stand):
    stand.activate()
    request = stand.guest.submit(0, Type.OUT, 8, b"x" * 512)
    stand.vbd.serve()
    stand.guest.put(1, (0x7FFF_0000, 0xFFFF, NEXT | WRITE, 2), SLOTS_AT)
    stand.guest.put(2, (0x7FFF_0000, 0xFFFF, WRITE, 2), SLOTS_AT)
    stand.vbd.withdraw()
    stand.activate()
    ((_, op, _, length, sector, _),) = waiting = stand.waiting()
    assert (op, length, sector) == (Op.WRITE, 512, 8)
    stand.answer(*waiting)
    stand.vbd.serve()
    assert stand.guest.status(request) == 0


def test_a_new_queue_waits_for_what_the_old_one_left_behind(stand):
    stand.activate()
    first = stand.guest.submit(0, Type.OUT, 0, bytes(512))
    stand.vbd.serve()
    waiting = stand.waiting()
    stand.vbd.stop_queue()
    stand.vbd.guest.start(stand.guest.queue(), stand.guest.view)
    second = stand.guest.submit(1, Type.OUT, 1, bytes(512))
    assert not stand.vbd.serve()
    stand.answer(*waiting)
    stand.vbd.serve()
    assert stand.guest.status(first) == 0xFF, "its answer is for nobody"
    stand.vbd.serve()
    stand.answer(*stand.waiting())
    stand.vbd.serve()
    assert stand.guest.status(second) == 0


def test_what_an_old_queue_left_behind_is_not_posted_to_a_successor(stand):
    stand.activate()
    stand.guest.submit(0, Type.OUT, 0, bytes(512))
    stand.vbd.serve()
    stand.vbd.stop_queue()
    stand.vbd.withdraw()
    stand.activate()
    assert stand.waiting() == []
    assert stand.vbd.stats().in_flight == 0


def test_the_longest_gap_without_an_answer_is_remembered(stand):
    stand.activate()
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.vbd.serve()
    stand.answer(*stand.waiting())
    stand.vbd.serve()
    stats = stand.vbd.stats()
    assert (stats.requests, stats.answers, stats.in_flight) == (1, 1, 0)
    assert stats.longest_gap_s > 0


class VbdMachine(RuleBasedStateMachine):
    """A model of a disk behind backends that die at any step: every request is answered exactly once, and a read sees
    the write that was answered last, whichever backend did it."""

    def __init__(self):
        super().__init__()
        self.stand = Stand(size=16)
        self.image = bytearray(512 * 64)
        self.idle = set(range(16))
        self.writing = {}
        self.reading = {}
        self.settled = {}
        self.unpublished = []
        self.stand.activate()

    @precondition(lambda self: self.idle)
    @rule(sector=st.integers(0, 7), byte=st.integers(1, 255))
    def write(self, sector, byte):
        if sector in {at for at, _, _ in self.writing.values()} | {at for at, _ in self.reading.values()}:
            return
        head = self.idle.pop()
        self.writing[head] = (sector, byte, self.stand.guest.submit(head, Type.OUT, sector, bytes([byte]) * 512))

    @precondition(lambda self: self.idle)
    @rule(sector=st.integers(0, 7))
    def read(self, sector):
        if sector in {at for at, _, _ in self.writing.values()}:
            return
        head = self.idle.pop()
        self.reading[head] = (sector, self.stand.guest.submit(head, Type.IN, sector, 512))

    @rule()
    def front(self):
        self.stand.vbd.serve()
        self.collect()

    @rule(count=st.integers(1, 16), publish=st.booleans())
    def back(self, count, publish):
        """The backend does some requests, and may die before it publishes."""
        ring = self.stand.ring
        for ident, op, _, length, sector, place in ring.take(count):
            at = sector * 512
            if op == Op.WRITE:
                self.image[at : at + length] = ring.out_view[place : place + length]
            else:
                ring.in_view[place : place + length] = self.image[at : at + length]
            self.unpublished.append(ident)
        if publish:
            ring.publish(self.unpublished)
            self.unpublished = []

    @rule(clean=st.booleans())
    def die(self, clean):
        self.unpublished = []
        self.stand.vbd.withdraw()
        self.stand.activate(take_published=clean)
        self.collect()

    def collect(self):
        for head, _ in self.stand.guest.completed():
            if head in self.writing:
                sector, byte, request = self.writing.pop(head)
                self.settled[sector] = byte
            else:
                sector, request = self.reading.pop(head)
                assert self.stand.guest.data(request) == bytes([self.settled.get(sector, 0)]) * 512
            assert self.stand.guest.status(request) == 0
            self.idle.add(head)

    def teardown(self):
        for _ in range(4):
            self.front()
            self.back(16, True)
        self.front()
        assert self.idle == set(range(16))
        self.stand.close()


TestVbd = VbdMachine.TestCase
TestVbd.settings = settings(max_examples=40, stateful_step_count=40)


def test_a_vbd_without_queue_or_backend_has_nothing_to_do():
    vbd = Vbd(8, read_only=False, serial="x")
    assert not vbd.serve()
    assert vbd.park()
    assert vbd.guest.nudge() is None
