"""What the block backend decides about a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.blkback.backend import Disk, FrontendBroken, decide
from kernel.abi.io.blkif import MAX_BYTES, POOL_AT, RING_BYTES, SMALL_RING_BYTES, Op, RspStatus

DISK = Disk(sectors=1000, read_only=False, ring_bytes=RING_BYTES)
OK, RANGE, READ_ONLY, UNSUPPORTED = RspStatus.OK, RspStatus.RANGE, RspStatus.READ_ONLY, RspStatus.UNSUPPORTED

ANSWERED = {
    "read": ((1, Op.READ, 0, 512, 0, POOL_AT), OK),
    "write at the end": ((1, Op.WRITE, 0, 1024, 998, POOL_AT), OK),
    "end of the pool": ((1, Op.WRITE, 0, 4096, 0, RING_BYTES - 4096), OK),
    "flush": ((1, Op.FLUSH, 0, 0, 0, 0), OK),
    "discard": ((1, Op.DISCARD, 0, 512 * 1000, 0, 0), OK),
    "zeros": ((1, Op.WRITE_ZEROES, 0, 512 * 1000, 0, 0), OK),
    "zeros, and the space back": ((1, Op.ZERO_UNMAP, 0, 512, 999, 0), OK),
    "no zeros": ((1, Op.WRITE_ZEROES, 0, 0, 0, 0), OK),
    "read over the end": ((1, Op.READ, 0, 1024, 999, POOL_AT), RANGE),
    "write far beyond": ((1, Op.WRITE, 0, 512, (1 << 64) - 1, POOL_AT), RANGE),
    "discard over the end": ((1, Op.DISCARD, 0, 512 * 1001, 0, 0), RANGE),
    "zeros over the end": ((1, Op.WRITE_ZEROES, 0, 1024, 999, 0), RANGE),
    "4 GiB of zeros": ((1, Op.ZERO_UNMAP, 0, 0xFFFF_FE00, 0, 0), RANGE),
    "zeros far beyond": ((1, Op.WRITE_ZEROES, 0, 512, (1 << 64) - 1, 0), RANGE),
    "unknown operation": ((1, 2, 0, 0, 0, 0), UNSUPPORTED),
    "another unknown operation": ((1, 255, 0, 512, 0, 0), UNSUPPORTED),
}
BROKEN = {
    "flags": (1, Op.READ, 1, 512, 0, POOL_AT),
    "half a sector": (1, Op.READ, 0, 256, 0, POOL_AT),
    "sector and a byte": (1, Op.WRITE, 0, 513, 0, POOL_AT),
    "half a sector of zeros": (1, Op.WRITE_ZEROES, 0, 256, 0, 0),
    "zeros with flags": (1, Op.ZERO_UNMAP, 1, 512, 0, 0),
    "no data": (1, Op.READ, 0, 0, 0, POOL_AT),
    "too much data": (1, Op.READ, 0, MAX_BYTES + 512, 0, POOL_AT),
    "4 GiB": (1, Op.WRITE, 0, 0xFFFF_FE00, 0, POOL_AT),
    "place in the header": (1, Op.READ, 0, 512, 0, 0),
    "place in the ring": (1, Op.READ, 0, 512, 0, POOL_AT - 512),
    "place over the end": (1, Op.WRITE, 0, 1024, 0, RING_BYTES - 512),
    "place beyond": (1, Op.WRITE, 0, 512, 0, 0xFFFF_FFFF),
    "flush with data": (1, Op.FLUSH, 0, 512, 0, 0),
    "flush with a place": (1, Op.FLUSH, 0, 0, 0, POOL_AT),
}


@pytest.mark.parametrize(("request_", "status"), ANSWERED.values(), ids=ANSWERED)
def test_a_right_request_is_answered(request_, status):
    assert decide(request_, DISK) == status


@pytest.mark.parametrize("request_", BROKEN.values(), ids=BROKEN)
def test_a_wrong_request_is_the_frontends_fault(request_):
    with pytest.raises(FrontendBroken):
        decide(request_, DISK)


@pytest.mark.parametrize("op", [Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES, Op.ZERO_UNMAP])
def test_a_read_only_disk_is_only_read(op):
    disk = Disk(1000, True, RING_BYTES)
    assert decide((1, Op.READ, 0, 512, 0, POOL_AT), disk) == OK
    assert decide((1, op, 0, 512, 0, POOL_AT), disk) == READ_ONLY


def test_a_place_in_a_small_ring_is_within_it():
    small = Disk(1000, False, SMALL_RING_BYTES)
    assert decide((1, Op.WRITE, 0, 4096, 0, SMALL_RING_BYTES - 4096), small) == OK
    for length, place in ((4096, SMALL_RING_BYTES - 3584), (512, SMALL_RING_BYTES), (MAX_BYTES, POOL_AT)):
        with pytest.raises(FrontendBroken, match="outside"):
            decide((1, Op.WRITE, 0, length, 0, place), small)


@given(
    st.tuples(
        st.integers(0, 0xFFFF), st.integers(0, 255), st.sampled_from([0, 0, 0, 1]), st.integers(0, 0xFFFF_FFFF),
        st.integers(0, (1 << 64) - 1) | st.integers(0, 2000), st.integers(0, 0xFFFF_FFFF) | st.integers(0, RING_BYTES),
    )
)  # fmt: skip
def test_nothing_outside_pool_and_disk_is_ever_allowed(fields):
    try:
        status = decide(fields, DISK)
    except FrontendBroken:
        return
    _, op, _, length, sector, place = fields
    if status != OK or op == Op.FLUSH:
        return
    assert sector * 512 + length <= DISK.sectors * 512
    if op in (Op.READ, Op.WRITE):
        assert POOL_AT <= place <= place + length <= RING_BYTES
