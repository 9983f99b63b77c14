"""Places in a pool."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domains.frontends.pool import PAGE_BYTES, PAGES, Pool
from kernel.abi.io.blkif import MAX_BYTES, POOL_AT, RING_BYTES

lengths = st.one_of(st.integers(1, 8), st.integers(9, 64), st.integers(64, MAX_BYTES // 512)).map(lambda n: 512 * n)


class PoolMachine(RuleBasedStateMachine):
    """Places that are taken never overlap, and all of the pool comes back."""

    def __init__(self):
        super().__init__()
        self.pool = Pool()
        self.taken = []

    @rule(length=lengths)
    def take(self, length):
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
        fresh = Pool()
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
        assert end <= RING_BYTES

    def teardown(self):
        for place, length in self.taken:
            self.pool.give_back(place, length)
        assert self.pool.take(MAX_BYTES) >= 0
        assert all(self.pool.take(PAGE_BYTES) >= 0 for _ in range(PAGES))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=60)


def test_a_ring_full_of_pages_and_four_of_what_linux_makes_of_sequential_io_fit():
    pool = Pool()
    assert all(pool.take(PAGE_BYTES) >= 0 for _ in range(PAGES))
    assert all(pool.take(1280 << 10) >= 0 for _ in range(4))
    assert pool.take(1280 << 10) == -1


def test_what_was_given_back_last_is_used_first():
    pool = Pool()
    places = [pool.take(4096) for _ in range(3)]
    pool.give_back(places[1], 4096)
    assert pool.take(512) == places[1]
