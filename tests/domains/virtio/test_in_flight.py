"""The table of what is in flight, over deaths between any two stores of a process that serves a queue."""

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.virtio.in_flight import COPY, IN_FLIGHT_BYTES, LAST, InFlight
from domains.virtio.queue import QueueFault, SplitQueue
from tests.domains.virtio.guest_driver import AVAILABLE, USED, GuestDriver

SIZE = 8


class Killed(Exception):
    """The process died before its next store."""


class Stores:
    """Counts the stores of one process into memory that outlives it, and dies at the one that is chosen."""

    def __init__(self, left: int) -> None:
        self.left = left

    def count(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1


class Watched:
    """A memoryview whose stores are counted."""

    def __init__(self, view: Any, stores: Stores) -> None:
        self._view = view
        self._stores = stores

    def __getitem__(self, index):
        return self._view[index]

    def __setitem__(self, index, value) -> None:
        self._stores.count()
        self._view[index] = value


class Guest(GuestDriver):
    """One that offers heads as they come back, and sees that each comes back once."""

    def __init__(self) -> None:
        super().__init__(size=SIZE)
        for head in range(SIZE):
            self.put(head, (0x10000, 16, 0, 0))
        self.free = list(range(SIZE))
        self.offered_order: list[int] = []

    def outstanding(self) -> list[int]:
        """Heads that were offered and have not come back."""
        (used,) = struct.unpack_from("<H", self.view, USED + 2)
        while self.seen != used:
            (head,) = struct.unpack_from("<I", self.view, USED + 4 + 8 * (self.seen % SIZE))
            assert head in self.offered_order, f"head {head} comes back twice"
            self.offered_order.remove(head)
            self.free.append(head)
            self.seen = (self.seen + 1) & 0xFFFF
        return self.offered_order

    def offer_some(self, chance: random.Random) -> None:
        self.outstanding()
        for _ in range(chance.randint(1, SIZE)):
            if self.free:
                head = self.free.pop(chance.randrange(len(self.free)))
                self.offered_order.append(head)
                struct.pack_into("<H", self.view, AVAILABLE + 4 + 2 * (self.offered % SIZE), head)
                self.offered = (self.offered + 1) & 0xFFFF
                struct.pack_into("<H", self.view, AVAILABLE + 2, self.offered)


def untaken(guest: Guest, position: int) -> list[int]:
    """Heads in the available ring from there on."""
    heads = []
    while position != guest.offered:
        heads.append(struct.unpack_from("<H", guest.view, AVAILABLE + 4 + 2 * (position % SIZE))[0])
        position = (position + 1) & 0xFFFF
    return heads


def serve(guest: Guest, table: bytearray, stores: Stores, chance: random.Random, turns: int) -> SplitQueue:
    """One process: take up the queue, then take and give back by chance, until it is killed. What it finds in flight
    has the order in which the guest offered it, and nothing is missing."""
    queue = SplitQueue(guest.memory, guest.layout, event_index=True, in_flight=InFlight(memoryview(table)))
    for owner, name in ((queue.in_flight, "marks"), (queue, "_used_words"), (queue, "_used_pairs")):
        setattr(owner, name, Watched(getattr(owner, name), stores))
    queue._marks = queue.in_flight.marks
    queue.resume()
    held = [queue.chain(head)[0] for head in queue.again]
    assert held == sorted(held, key=guest.offered_order.index)
    assert sorted([*held, *untaken(guest, queue.next_available)]) == sorted(guest.outstanding())
    queue.again.clear()
    for _ in range(turns):
        chain = queue.take() if chance.random() < 0.6 else None
        if chain is not None:
            queue.in_flight.mark(chain[0])
            held.append(chain[0])
        elif held:
            queue.publish(held.pop(chance.randrange(len(held))), 1)
        else:
            guest.offer_some(chance)
    return queue


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), min_size=1, max_size=12), st.sampled_from([0, 0xFFFC]))
def test_a_death_between_any_two_stores_loses_nothing_and_gives_nothing_back_twice(seed, lives, index):
    chance, guest, table = random.Random(seed), Guest(), bytearray(IN_FLIGHT_BYTES)
    for at in (AVAILABLE, USED):
        struct.pack_into("<H", guest.view, at + 2, index)
    guest.offered = guest.seen = index
    SplitQueue(guest.memory, guest.layout, event_index=True, in_flight=InFlight(memoryview(table))).begin()
    try:
        for stores in lives:
            guest.offer_some(chance)
            try:
                serve(guest, table, Stores(stores), chance, turns=100)
            except Killed:
                continue
        serve(guest, table, Stores(10**6), chance, turns=0)
    finally:
        guest.close()


def test_a_used_index_that_the_guest_has_changed_is_its_fault():
    guest, table = Guest(), bytearray(IN_FLIGHT_BYTES)
    queue = SplitQueue(guest.memory, guest.layout, event_index=True, in_flight=InFlight(memoryview(table)))
    queue.begin()
    for changed in (2, 0xFFFF):
        struct.pack_into("<H", guest.view, USED + 2, changed)
        with pytest.raises(QueueFault, match=r"used.idx was changed"):
            SplitQueue(guest.memory, guest.layout, event_index=True, in_flight=InFlight(memoryview(table))).resume()
    guest.close()


def test_the_last_head_is_held_no_more_once_the_used_index_has_passed_the_copy():
    table = InFlight()
    table.mark(3)
    table.mark(5)
    table.marks[LAST], table.marks[COPY] = 3, 9
    assert table.recover(9) == [3, 5]
    assert table.recover(10) == [5]
    assert table.recover(10) == [5]
    assert table.recover(12) is None
