"""Places in a pool."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domains.frontends.pool import PAGE_BYTES, PAGES, Pool
from kernel.abi.io.blkif import MAX_BYTES, POOL_AT, RING_BYTES, SMALL_RING_BYTES

lengths = st.one_of(st.integers(1, 8), st.integers(9, 64), st.integers(64, MAX_BYTES // 512)).map(lambda n: 512 * n)


class PoolMachine(RuleBasedStateMachine):
    """Places that are taken never overlap, and all of the pool comes back."""

    ring_bytes = RING_BYTES

    def __init__(self):
        super().__init__()
        self.pool = Pool(self.ring_bytes)
        self.taken = []

    @rule(length=lengths)
    def take(self, length):
        length = min(length, self.pool.largest)
        place = self.pool.take(length)
        if place >= 0:
            self.taken.append((place, length))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data):
        self.pool.give_back(*self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule(order=st.randoms(use_true_random=False))
    def move_all_to_a_fresh_pool(self, order):
        """What a re-post does: it fits, whatever the order."""
        fresh = Pool(self.ring_bytes)
        lengths = [length for _, length in self.taken]
        order.shuffle(lengths)
        places = [fresh.take(length) for length in lengths]
        assert all(place >= 0 for place in places)

    @invariant()
    def nothing_overlaps(self):
        end = POOL_AT
        for place, length in sorted(self.taken):
            assert place >= end
            end = place + length
        assert end <= self.ring_bytes

    def teardown(self):
        for place, length in self.taken:
            self.pool.give_back(place, length)
        assert self.pool.take(self.pool.largest) >= 0
        assert all(self.pool.take(PAGE_BYTES) >= 0 for _ in range(PAGES))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=60)


class SmallPoolMachine(PoolMachine):
    ring_bytes = SMALL_RING_BYTES


TestSmallPool = SmallPoolMachine.TestCase
TestSmallPool.settings = settings(max_examples=60, stateful_step_count=60)


def test_the_largest_request_is_the_rings_or_what_an_empty_pool_has_room_for():
    assert Pool(RING_BYTES).largest == MAX_BYTES
    assert Pool(SMALL_RING_BYTES).largest == 3 << 19


@pytest.mark.parametrize(("ring_bytes", "at_once"), [(RING_BYTES, 4), (SMALL_RING_BYTES, 1)])
def test_a_ring_full_of_pages_and_what_linux_makes_of_sequential_io_fit(ring_bytes, at_once):
    pool = Pool(ring_bytes)
    assert all(pool.take(PAGE_BYTES) >= 0 for _ in range(PAGES))
    assert all(pool.take(1280 << 10) >= 0 for _ in range(at_once))
    assert pool.take(1280 << 10) == -1


def test_what_was_given_back_last_is_used_first():
    pool = Pool(RING_BYTES)
    places = [pool.take(4096) for _ in range(3)]
    pool.give_back(places[1], 4096)
    assert pool.take(512) == places[1]
