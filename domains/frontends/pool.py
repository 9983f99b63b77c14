"""Where in a grant's pool a request's data goes.

Two parts: single pages, taken and given back in constant time, and runs of 16 KiB units, found first-fit as bits of an
integer. First-fit and last-in-first-out both hand out again what is still in the cache.
"""

from kernel.abi.io.blkif import MAX_BYTES, POOL_AT

__all__ = ["Pool"]

PAGE_BYTES = 4096
PAGES = 256
"""One for each request that can be in flight."""

UNIT_BYTES = 16384
_RUNS_AT = POOL_AT + PAGES * PAGE_BYTES


class Pool:
    """One direction's pool. Places are bytes from the grant's start. `largest`: the most that fits an empty one, as far
    as the ring allows it.

    A request that fitted an old pool among others fits a fresh one among the same others, in any order: without
    gaps between them they need no more than they had. So a re-post never waits.
    """

    __slots__ = ("_free_units", "largest", "pages")

    def __init__(self, ring_bytes: int) -> None:
        units = (ring_bytes - _RUNS_AT) // UNIT_BYTES
        self.largest = min(MAX_BYTES, units * UNIT_BYTES)
        self.pages = list(range(_RUNS_AT - PAGE_BYTES, POOL_AT - 1, -PAGE_BYTES))
        self._free_units = (1 << units) - 1

    def take(self, length: int) -> int:
        """Room for `length` bytes, 1 … `largest`: its place, or -1 while there is none."""
        if length <= PAGE_BYTES and self.pages:
            return self.pages.pop()
        units = (length + UNIT_BYTES - 1) // UNIT_BYTES
        first = _first_run(self._free_units, units)
        if first < 0:
            return -1
        self._free_units ^= ((1 << units) - 1) << first
        return _RUNS_AT + first * UNIT_BYTES

    def give_back(self, place: int, length: int) -> None:
        """What `take` gave for this `length` is free again."""
        if place < _RUNS_AT:
            self.pages.append(place)
            return
        units = (length + UNIT_BYTES - 1) // UNIT_BYTES
        self._free_units |= ((1 << units) - 1) << ((place - _RUNS_AT) // UNIT_BYTES)


def _first_run(free: int, units: int) -> int:
    """The lowest bit of `free` that begins `units` set ones; -1 when there is none."""
    starts, covered = free, 1
    while starts and covered < units:
        step = min(covered, units - covered)
        starts &= starts >> step
        covered += step
    return (starts & -starts).bit_length() - 1
