"""The console ring between an honest and a hostile end: what is written arrives, and what cannot be is found."""

import os
import socket
import struct

import pytest

from domains.frontends.console_ring import ConsoleRing, Size, make_out
from domains.frontends.key_ledger import Keys, RingBroken
from drivers.console.ring import BackRing, FrontendBroken
from kernel.abi.io.consif import (
    CHUNK_BYTES,
    IN_BYTES,
    OUT_BYTES,
    OUT_RING,
    PROD,
    SEEN,
    SESSION,
    SLOT,
    SLOT_DATA,
    SLOTS,
    SLOTS_AT,
    SLOTS_TAKEN,
    TAIL_BYTES,
    TAKEN,
    WATCHERS,
    WRITER,
)
from kernel.abi.io.ring import Sealed, Unsealed
from tests.drivers.console.ends import connect, ends, write


def words(view: memoryview) -> memoryview:
    return view[:SLOTS_AT].cast("Q")


@pytest.fixture
def both():
    with ends() as (front, back):
        yield front, back


def test_output_is_read_where_it_was_written_around_the_rings_end(both):
    front, back = both
    text = os.urandom(3 * OUT_RING // 2)
    for at in range(0, len(text), CHUNK_BYTES):
        write(front, text[at : at + CHUNK_BYTES])
    written = back.written()
    assert written == len(text)
    assert back.read(written - TAIL_BYTES, written) == text[-TAIL_BYTES:]
    assert back.read(written, written) == b""


def test_what_may_have_been_overwritten_is_not_given(both):
    front, back = both
    for _ in range(OUT_RING // CHUNK_BYTES + 1):
        write(front, b"x" * CHUNK_BYTES)
    assert back.read(0, 100) is None
    assert back.read(back.written() - OUT_RING + CHUNK_BYTES, back.written() - OUT_RING + CHUNK_BYTES + 9) == b"x" * 9


def test_keys_and_sizes_come_in_order_and_are_told_as_taken(both):
    front, back = both
    back.put_size(1, 24, 80)
    assert back.put_keys(1, 0, b"k" * 1500) == SLOT_DATA
    assert front.next_slot() == Size(24, 80)
    front.took_slot()
    assert front.next_slot() == Keys(b"k" * SLOT_DATA)
    front.took_keys(10)
    assert back.taken(1) == 10
    assert back.taken(2) == 0
    assert front.next_slot() == Keys(b"k" * (SLOT_DATA - 10))


def test_slots_run_out_and_come_back(both):
    front, back = both
    for number in range(SLOTS):
        assert back.has_room()
        back.put_keys(1, number, b"x")
    assert not back.has_room()
    front.next_slot()
    front.took_keys(1)
    front.took_slot()
    assert back.has_room()


def test_watchers_hold_the_guest_up_within_bounds(both):
    front, back = both
    write(front, b"x" * CHUNK_BYTES)
    assert not front.would_outrun(TAIL_BYTES)
    back.written()
    back.tell(0, 1, 1)
    assert front.unseen() == CHUNK_BYTES
    assert front.would_outrun(TAIL_BYTES)
    assert not front.would_outrun(1)
    for _ in range(OUT_RING // CHUNK_BYTES):
        write(front, b"x" * CHUNK_BYTES)
    assert not front.would_outrun(1), "what cannot be seen any more is not waited for"


def test_a_successor_finds_what_its_predecessor_left(both):
    front, back = both
    write(front, b"x" * 100)
    back.written()
    back.tell(60, 2, 9)
    back.put_keys(9, 0, b"abc")
    assert front.next_slot() == Keys(b"abc")
    front.took_keys(2)
    successor = connect(front)
    assert successor.carried == (60, 2, 9, 9)
    assert successor.taken(9) == 2
    assert front.next_slot() is None, "what was in the old slots comes again"
    successor.put_keys(9, 2, b"c")
    assert front.next_slot() == Keys(b"c")
    successor.close()


@pytest.mark.parametrize("prod", [SLOTS + 1, 1 << 63, (1 << 64) - 1])
def test_slots_that_run_ahead_are_the_backends_fault(both, prod):
    front, back = both
    words(back._in)[PROD] = prod
    with pytest.raises(RingBroken, match="run ahead"):
        front.next_slot()


@pytest.mark.parametrize(
    ("slot", "what"),
    [
        ((1, 0, SLOT_DATA + 1, 0), "too long"),
        ((1, 0, 0xFFFF, 0), "too long"),
        ((1, 0, 1, 2), "no kind"),
        ((1, 0, 3, 1), "no kind"),
        ((1, 1, 1, 0), "left out"),
        ((1, (1 << 64) - 1, 1, 0), "left out"),
        ((0, 0, 1, 0), "no session"),
        ((1 << 62, 0, 1, 0), "no session"),
    ],
)
def test_a_slot_that_cannot_be_is_the_backends_fault(both, slot, what):
    front, back = both
    SLOT.pack_into(back._in, SLOTS_AT, *slot)
    words(back._in)[PROD] = 1
    with pytest.raises(RingBroken, match=what):
        front.next_slot()


@pytest.mark.parametrize("seen", [1 << 40, (1 << 64) - 1])
def test_a_backend_that_says_nonsense_of_its_watchers_holds_nobody_up(both, seen):
    front, back = both
    write(front, b"x" * CHUNK_BYTES)
    words(back._in)[SEEN], words(back._in)[WATCHERS] = seen, (1 << 64) - 1
    assert not front.would_outrun(CHUNK_BYTES)


def test_more_slots_taken_than_filled_is_the_frontends_fault(both):
    front, back = both
    front._words[SLOTS_TAKEN] = 1
    with pytest.raises(FrontendBroken, match="more slots"):
        back.has_room()


@pytest.mark.parametrize("prod", [0, 99, 1 << 62, (1 << 64) - 1])
def test_output_that_runs_back_or_beyond_all_bounds_is_the_frontends_fault(both, prod):
    front, back = both
    write(front, b"x" * 100)
    back.written()
    front._words[PROD] = prod
    with pytest.raises(FrontendBroken, match="prod"):
        back.written()


@pytest.mark.parametrize("word", [SEEN, WATCHERS, WRITER])
def test_a_backends_nonsense_is_not_carried_over_to_be_blamed_on_the_guest(both, word):
    front, back = both
    words(back._in)[word] = (1 << 64) - 1
    successor = connect(front)
    assert successor.carried[:2] in ((0, 0), (0, 256))
    successor.close()


def test_a_header_that_cannot_be_is_the_frontends_fault(both):
    front, _ = both
    front._words[SESSION] = 1 << 62
    with pytest.raises(FrontendBroken, match="header"):
        connect(front)


@pytest.mark.parametrize("word", [SESSION, TAKEN])
def test_an_acknowledgement_that_cannot_be_is_seen_as_it_is(both, word):
    """Whoever decides compares it with what was placed."""
    front, back = both
    front._words[SESSION], front._words[TAKEN] = 5, 5
    front._words[word] = (1 << 64) - 1
    assert back.taken(5) in (0, (1 << 64) - 1)


@pytest.mark.parametrize(("out", "into"), [(OUT_BYTES - 4096, IN_BYTES), (OUT_BYTES, IN_BYTES + 4096)])
def test_grants_of_another_size_are_not_mapped(out, into):
    memories = [Sealed("out", out, read_only_to_others=True), Sealed("in", into, read_only_to_others=False)]
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Unsealed, match=f"not {OUT_BYTES if out != OUT_BYTES else IN_BYTES}"):
        BackRing(memories[0].descriptor, memories[1].descriptor, theirs)
    for memory in memories:
        os.close(memory.descriptor)
        memory.unmap()


def test_a_backend_cannot_write_a_guests_output(both):
    _, back = both
    with pytest.raises(TypeError):
        back._out[0:8] = struct.pack("<Q", 1)


def test_a_dead_frontends_ring_is_still_read():
    front = ConsoleRing(make_out())
    successor = connect(front)
    write(front, b"last words")
    front.release()
    assert successor.read(0, successor.written()) == b"last words"
    successor.close()
