"""Sealed memory and event indices: what every ring stands on."""

import fcntl
import mmap
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.abi.io.blkif import (
    EVENT,
    MAX_BYTES,
    POOL_AT,
    PROD,
    REQUEST,
    REQUEST_BYTES,
    REQUESTS_AT,
    RESPONSES_AT,
    RING_BYTES,
    SLOTS,
    SMALL_RING_BYTES,
    Op,
    RspStatus,
)
from kernel.abi.io.ring import COUNT_MASK, Sealed, Unsealed, check_sealed, make_fence, passes

SIZE = 1 << 16


@pytest.fixture
def read_only():
    sealed = Sealed("out", SIZE, read_only_to_others=True)
    yield sealed
    os.close(sealed.descriptor)
    sealed.unmap()


@pytest.fixture
def writable():
    sealed = Sealed("in", SIZE, read_only_to_others=False)
    yield sealed
    os.close(sealed.descriptor)
    sealed.unmap()


def test_the_owner_writes_and_the_peer_sees_it(read_only):
    seen = check_sealed(read_only.descriptor, SIZE, writable=False)
    read_only.view[:5] = b"hello"
    assert bytes(seen[:5]) == b"hello"


def test_nobody_else_can_map_it_writable_not_even_by_opening_it_again(read_only):
    again = os.open(f"/proc/self/fd/{read_only.descriptor}", os.O_RDWR)
    try:
        for descriptor in (read_only.descriptor, again):
            with pytest.raises(PermissionError):
                mmap.mmap(descriptor, SIZE, mmap.MAP_SHARED, mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                os.pwrite(descriptor, b"x", 0)
        with pytest.raises(Unsealed):
            check_sealed(read_only.descriptor, SIZE, writable=True)
    finally:
        os.close(again)


@pytest.mark.parametrize("size", [0, SIZE - 4096, SIZE + 4096])
def test_it_can_neither_shrink_nor_grow(read_only, writable, size):
    for sealed in (read_only, writable):
        with pytest.raises(PermissionError):
            os.ftruncate(sealed.descriptor, size)


def test_its_seals_are_final(writable):
    with pytest.raises(PermissionError):
        fcntl.fcntl(writable.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_peer_may_write_what_is_granted_for_that(writable):
    theirs = check_sealed(writable.descriptor, SIZE, writable=True)
    theirs[-3:] = b"end"
    assert bytes(writable.view[-3:]) == b"end"


def memfd(size, seals, *, allocate=True):
    descriptor = os.memfd_create("granted", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if allocate:
        os.posix_fallocate(descriptor, 0, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
GRANTS = {
    "no seals": lambda: memfd(SIZE, 0),
    "may shrink": lambda: memfd(SIZE, fcntl.F_SEAL_GROW),
    "may grow": lambda: memfd(SIZE, fcntl.F_SEAL_SHRINK),
    "too small": lambda: memfd(SIZE - 4096, FIXED),
    "too large": lambda: memfd(SIZE + 4096, FIXED),
    "without pages": lambda: memfd(SIZE, FIXED, allocate=False),
    "a file": lambda: os.open("/proc/self/exe", os.O_RDONLY),
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "a pipe": lambda: os.open("/dev/null", os.O_RDWR),
    "an eventfd": lambda: os.eventfd(0),
}


@pytest.mark.parametrize("make", GRANTS.values(), ids=GRANTS)
def test_what_is_not_sealed_memory_of_the_right_size_is_not_mapped(make):
    descriptor = make()
    try:
        with pytest.raises(Unsealed):
            check_sealed(descriptor, SIZE, writable=False)
    finally:
        os.close(descriptor)


@given(st.integers(0, COUNT_MASK), st.integers(0, SLOTS), st.integers(-SLOTS, 2 * SLOTS))
def test_an_event_is_passed_exactly_when_it_is_among_what_was_published(before, count, offset):
    published, event = (before + count) & COUNT_MASK, (before + offset) & COUNT_MASK
    assert passes(published, before, event) == (1 <= offset <= count)


def test_a_fence_leaves_its_lock_free():
    fences = [make_fence() for _ in range(4)]
    threads = [threading.Thread(target=lambda fence=fence: [fence() for _ in range(20_000)]) for fence in fences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_layout_is_the_one_that_is_written_down():
    packed = REQUEST.pack(0x0102, Op.WRITE, 0, 0x1000, 0x1_0000_0002, 0x4000)
    assert packed.hex() == "0201010000100000020000000100000000400000" + "00" * 12
    assert (PROD * 4, EVENT * 4) == (64, 128)
    assert (REQUEST_BYTES, SLOTS, REQUESTS_AT, RESPONSES_AT, POOL_AT) == (32, 256, 4096, 4096, 16384)
    assert REQUESTS_AT + SLOTS * REQUEST_BYTES <= POOL_AT
    assert RESPONSES_AT + SLOTS * 4 <= POOL_AT
    assert RING_BYTES == POOL_AT + (6 << 20)
    assert SMALL_RING_BYTES == POOL_AT + (5 << 19)
    assert MAX_BYTES == 4 << 20
    assert [status.value for status in RspStatus] == [0, 1, 2, 3, 4, 5]
    assert {op.name: op.value for op in Op} == {
        "READ": 0, "WRITE": 1, "FLUSH": 3, "DISCARD": 5, "WRITE_ZEROES": 7, "ZERO_UNMAP": 8,
    }  # fmt: skip
