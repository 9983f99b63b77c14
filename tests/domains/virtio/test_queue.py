"""The device's side of a virtqueue, against a driver that keeps the rules and one that does not."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.virtio.queue import MAX_SIZE, QueueFault, QueueLayout, SplitQueue
from tests.domains.virtio.guest_driver import (
    AVAILABLE,
    INDIRECT,
    MEMORY_BYTES,
    NEXT,
    SLOTS_AT,
    TABLE,
    USED,
    WRITE,
    GuestDriver,
)

HEADER, DATA, STATUS = (0x5000, 16, 0, 0), (0x6000, 512, WRITE, 0), (0x7000, 1, WRITE, 0)


@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("base", [0, 0x1000_0000])
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_chain_is_taken_as_it_was_laid_out(indirect, base, pieces):
    guest = GuestDriver(base=base)
    data = [(0x6000 + 0x200 * place, 512, WRITE, 0) for place in range(pieces)]
    queue = guest.queue()
    guest.chain(3, [HEADER, *data, STATUS], indirect=indirect)
    assert queue.take() == (3, ((0x5000, 16),), (*((at, 512) for at, *_ in data), (0x7000, 1)))
    assert queue.take() is None


def test_a_chain_may_go_on_in_an_indirect_table(guest):
    guest.put(0, (*HEADER[:2], NEXT, 1), SLOTS_AT)
    guest.put(1, STATUS, SLOTS_AT)
    guest.put(5, (0x8000, 16, NEXT, 6))
    guest.put(6, (SLOTS_AT, 32, INDIRECT, 0))
    queue = guest.queue()
    guest.offer(5)
    assert queue.take() == (5, ((0x8000, 16), (0x5000, 16)), ((0x7000, 1),))


def test_what_was_put_back_is_taken_again(guest):
    queue = guest.queue()
    guest.chain(1, [HEADER, DATA, STATUS])
    taken = queue.take()
    queue.untake()
    assert queue.take() == taken


def test_indices_go_on_after_their_largest():
    """Both are 16 bits wide (§2.7.6, §2.7.8)."""
    guest = GuestDriver()
    guest.offered = guest.seen = 0xFFFE
    struct.pack_into("<H", guest.view, AVAILABLE + 2, guest.offered)
    struct.pack_into("<H", guest.view, USED + 2, guest.seen)
    guest.completed()
    queue = guest.queue()
    for head in range(4):
        guest.chain(head, [HEADER, DATA, STATUS])
        taken = queue.take()
        queue.untake()
        assert not queue.park()
        assert queue.take() == taken
        assert taken is not None
        assert taken[0] == head
        assert queue.take() is None
        queue.publish(head, 1)
        assert queue.wants_signal()
        assert queue.unseen()
        assert guest.completed() == [(head, 1)]
        assert not queue.unseen()
    assert queue.next_available == 2
    guest.close()


def test_the_guest_is_signalled_once_for_what_it_has_not_seen(guest):
    queue = guest.queue()
    assert not queue.wants_signal()
    guest.chain(0, [HEADER, STATUS])
    head, _, _ = queue.take()
    queue.publish(head, 1)
    assert queue.unseen()
    assert queue.wants_signal()
    assert not queue.wants_signal()
    assert guest.completed() == [(0, 1)]
    assert not queue.unseen()


def test_without_event_index_the_flag_of_the_guest_decides():
    guest = GuestDriver(event_index=False)
    queue = guest.queue()
    queue.publish(0, 1)
    assert queue.wants_signal()
    struct.pack_into("<H", guest.view, AVAILABLE, 1)
    queue.publish(1, 1)
    assert not queue.wants_signal()
    assert not queue.unseen()


def test_parking_fails_when_something_came_meanwhile(guest):
    queue = guest.queue()
    assert queue.park()
    guest.chain(0, [HEADER, STATUS])
    assert not queue.park()
    assert queue.offers()


def test_parking_asks_for_a_kick_at_the_next_buffer(guest):
    queue = guest.queue()
    guest.chain(0, [HEADER, STATUS])
    queue.take()
    queue.park()
    assert struct.unpack_from("<H", guest.view, USED + 4 + 8 * guest.size) == (1,)


def indirect(guest, table, *, length=None, flags=INDIRECT, at=SLOTS_AT):
    for place, descriptor in enumerate(table):
        guest.put(place, descriptor, SLOTS_AT)
    guest.put(0, (at, 16 * len(table) if length is None else length, flags, 1))
    guest.offer(0)


LOOP = [(0x5000, 16, NEXT, 1), (0x6000, 512, NEXT, 0), STATUS]
HOSTILE = {
    "head out of range": (lambda g: g.offer(64), "head out of range"),
    "available index runs ahead": (lambda g: g.offer(0, ahead=65), "avail.idx runs ahead"),
    "direct chain loops": (
        lambda g: (g.put(0, (0x5000, 16, NEXT, 1)), g.put(1, (0x5000, 16, NEXT, 0)), g.offer(0)),
        "chain loops",
    ),
    "descriptor leads to itself": (lambda g: (g.put(0, (0x5000, 16, NEXT, 0)), g.offer(0)), "chain loops"),
    "direct next out of range": (lambda g: (g.put(0, (0x5000, 16, NEXT, 64)), g.offer(0)), "next out of range"),
    "indirect chain loops": (lambda g: indirect(g, LOOP), "chain loops"),
    "indirect next out of range": (lambda g: indirect(g, [(0x5000, 16, NEXT, 3), DATA, STATUS]), "next out of range"),
    "indirect inside indirect": (
        lambda g: indirect(g, [(0x5000, 16, INDIRECT, 0), DATA, STATUS]),
        "in an indirect table",
    ),
    "indirect with next": (lambda g: indirect(g, [HEADER, STATUS], flags=INDIRECT | NEXT), "with next"),
    "indirect of three with next": (lambda g: indirect(g, [HEADER, DATA, STATUS], flags=INDIRECT | NEXT), "with next"),
    "empty table": (lambda g: indirect(g, [], length=0), "wrong length"),
    "table of half a descriptor": (lambda g: indirect(g, [HEADER, STATUS], length=24), "wrong length"),
    "table too long": (lambda g: indirect(g, [HEADER], length=16 * (MAX_SIZE + 1)), "wrong length"),
    "table of 4 GiB": (lambda g: indirect(g, [HEADER], length=0xFFFF_FFF0), "wrong length"),
    "table outside memory": (lambda g: indirect(g, [HEADER, STATUS], at=MEMORY_BYTES), "table outside"),
    "table half outside memory": (lambda g: indirect(g, [HEADER, DATA, STATUS], at=MEMORY_BYTES - 32), "table outside"),
    "table at the end of addresses": (
        lambda g: indirect(g, [HEADER, DATA, STATUS], at=(1 << 64) - 16),
        "table outside",
    ),
    "data outside memory": (
        lambda g: g.chain(0, [HEADER, (MEMORY_BYTES, 512, WRITE, 0), STATUS]),
        "descriptor outside",
    ),
    "data half outside memory": (
        lambda g: g.chain(0, [HEADER, (MEMORY_BYTES - 256, 512, WRITE, 0), STATUS]),
        "descriptor outside",
    ),
    "data of 4 GiB": (lambda g: g.chain(0, [HEADER, (0, 0xFFFF_FFFF, WRITE, 0), STATUS]), "descriptor outside"),
    "data wraps": (lambda g: g.chain(0, [HEADER, ((1 << 64) - 256, 512, WRITE, 0), STATUS]), "descriptor outside"),
    "empty header": (lambda g: g.chain(0, [(0x5000, 0, 0, 0), DATA, STATUS]), "empty descriptor"),
    "empty data": (lambda g: g.chain(0, [HEADER, (0x6000, 0, WRITE, 0), STATUS]), "empty descriptor"),
    "empty status": (lambda g: g.chain(0, [HEADER, DATA, (0x7000, 0, WRITE, 0)]), "empty descriptor"),
    "status outside memory": (lambda g: g.chain(0, [HEADER, DATA, (MEMORY_BYTES, 1, WRITE, 0)]), "descriptor outside"),
    "readable after writable": (lambda g: g.chain(0, [HEADER, DATA, (0x7000, 1, 0, 0)]), "after a writable"),
    "all writable, then a readable one": (
        lambda g: g.chain(0, [(0x5000, 16, WRITE, 0), (0x6000, 512, 0, 0), STATUS]),
        "after a writable",
    ),
    "long chain, readable after writable": (
        lambda g: g.chain(0, [HEADER, DATA, (0x7000, 1, 0, 0), STATUS]),
        "after a writable",
    ),
}


@pytest.mark.parametrize(("lay_out", "what"), HOSTILE.values(), ids=HOSTILE)
def test_a_chain_that_no_driver_would_lay_out_is_a_fault(guest, lay_out, what):
    queue = guest.queue()
    lay_out(guest)
    with pytest.raises(QueueFault) as caught:
        queue.take()
    assert what in caught.value.what


LAYOUTS = {
    "no descriptors": QueueLayout(0, 0, 0x2000, 0x3000),
    "not a power of two": QueueLayout(48, 0, 0x2000, 0x3000),
    "larger than ours": QueueLayout(2 * MAX_SIZE, 0, 0x4000, 0x8000),
    "table outside memory": QueueLayout(64, MEMORY_BYTES, 0x2000, 0x3000),
    "available ring half outside": QueueLayout(64, 0, MEMORY_BYTES - 64, 0x3000),
    "used ring half outside": QueueLayout(64, 0, 0x2000, MEMORY_BYTES - 64),
    "unaligned table": QueueLayout(64, 8, 0x2000, 0x3000),
    "unaligned available ring": QueueLayout(64, 0, 0x2001, 0x3000),
    "unaligned used ring": QueueLayout(64, 0, 0x2000, 0x3002),
    "negative": QueueLayout(64, -16, 0x2000, 0x3000),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_queue_that_cannot_be_is_a_fault(guest, layout):
    with pytest.raises(QueueFault):
        SplitQueue(guest.memory, layout, event_index=True, next_available=0)


@pytest.mark.parametrize("lay_out", [lay_out for lay_out, _ in HOSTILE.values()], ids=HOSTILE)
def test_the_fast_way_takes_nothing_that_is_a_fault(guest, lay_out):
    queue = guest.queue()
    lay_out(guest)
    with contextlib.suppress(QueueFault):
        assert queue.take_plain() is None
    assert queue.next_available == 0


BASE = 0x1000_0000
BELOW, BEYOND = -0x1000, MEMORY_BYTES - 8
OUTSIDE = {
    f"{part} {where}": (place, address)
    for place, part in enumerate(("header", "data", "status"))
    for where, address in (("below memory", BELOW), ("over its end", BEYOND), ("beyond it", MEMORY_BYTES))
}


@pytest.mark.parametrize(("place", "address"), OUTSIDE.values(), ids=OUTSIDE)
def test_the_fast_way_takes_nothing_that_lies_outside_memory(place, address):
    guest = GuestDriver(base=BASE)
    chain = [HEADER, DATA, (0x7000, 16, WRITE, 0)]
    chain[place] = (address, *chain[place][1:])
    queue = guest.queue()
    guest.chain(0, chain)
    assert queue.take_plain() is None
    with pytest.raises(QueueFault, match="outside memory"):
        queue.take()
    guest.close()


def test_the_fast_way_takes_no_table_below_memory():
    guest = GuestDriver(base=BASE)
    queue = guest.queue()
    indirect(guest, [HEADER, DATA, STATUS], at=-32)
    assert queue.take_plain() is None
    guest.close()


words = st.sampled_from([0, 16, 32, 48, 64, 128, 0x5000, NEXT, WRITE, NEXT | WRITE, INDIRECT, 5, 6, SLOTS_AT])


@given(
    st.sampled_from([0, BASE]),
    st.lists(st.tuples(st.integers(-64, MEMORY_BYTES + 64), st.integers(0, 600) | words), min_size=3, max_size=3),
    st.sampled_from([NEXT, NEXT | WRITE]),
)
def test_the_fast_way_and_the_general_one_see_the_same(base, pieces, direction):
    """Three pieces anywhere about memory: what the fast way takes is what the general one would have."""
    guest = GuestDriver(base=base)
    queue = guest.queue()
    flags = (0, direction & WRITE, WRITE)
    guest.chain(0, [(at, size, flag, 0) for (at, size), flag in zip(pieces, flags, strict=True)])
    try:
        plain = queue.take_plain()
        if plain is None:
            return
        queue.untake()
        _, a0, l0, a1, l1, _, a2, l2 = plain
        chain = queue.take()
        assert chain is not None
        _, readable, writable = chain
        assert [*readable, *writable] == [(a0, l0), (a1, l1), (a2, l2)]
    finally:
        guest.close()


@given(
    st.binary(min_size=16 * 8, max_size=16 * 8),
    st.binary(min_size=16 * 8, max_size=16 * 8),
    st.integers(0, 9),
    st.lists(words, max_size=24),
)
def test_whatever_a_guest_writes_gives_memory_of_its_own_or_a_fault(own, table, head, plausible):
    guest = GuestDriver(size=8)
    queue = guest.queue()
    guest.view[TABLE : TABLE + 128] = own
    guest.view[SLOTS_AT : SLOTS_AT + 128] = table
    for place, word in enumerate(plausible):
        struct.pack_into("<I", guest.view, (TABLE if place % 2 else SLOTS_AT) + 4 * place, word)
    guest.offer(head)
    try:
        chain = queue.take()
    except QueueFault:
        return
    finally:
        guest.close()
    assert chain is not None
    for at, length in (*chain[1], *chain[2]):
        assert length > 0
        assert 0 <= at <= at + length <= MEMORY_BYTES
    assert len(chain[1]) + len(chain[2]) <= 16


def test_a_table_changed_after_it_was_read_changes_nothing(guest):
    queue = guest.queue()
    guest.chain(0, [HEADER, DATA, STATUS])
    taken = queue.take()
    guest.put(1, (MEMORY_BYTES, 0xFFFF_FFFF, WRITE, 0), SLOTS_AT)
    assert taken == (0, ((0x5000, 16),), ((0x6000, 512), (0x7000, 1)))
