"""How much memory a guest's disks take."""

import pytest

from domains.guests.disks import size_of_rings
from kernel.abi.io.blkif import RING_BYTES, SMALL_RING_BYTES

MIB = 1 << 20


@pytest.mark.parametrize(
    ("memory_mib", "vbds", "size"),
    [
        (24, 1, SMALL_RING_BYTES),
        (37, 1, RING_BYTES),
        (64, 1, RING_BYTES),
        (64, 2, RING_BYTES),
        (64, 3, SMALL_RING_BYTES),
        (256, 16, SMALL_RING_BYTES),
        (512, 16, RING_BYTES),
    ],
)
def test_rings_are_large_where_all_of_a_guests_take_no_more_than_its_memory(memory_mib, vbds, size):
    assert size_of_rings(memory_mib, vbds) == size
    assert size == SMALL_RING_BYTES or (2 * vbds + 1) * 2 * size <= memory_mib * MIB
