"""What every ring between two domains stands on: free-running indices, doorbells that are left out, sealed memory.

A ring has two halves in two grants. Each half's header has a producer index, which counts what its writer has
published, and an event index, with which its writer asks of the *other* half: ring me when you pass this
(`xen/include/public/io/ring.h`; virtio 1.2 §2.7.10). Every word has one writer, in memory that it alone may write.

    producer                                   consumer
    fill slot, store `prod`                    store `event` = consumed + 1
    full fence                                 full fence
    load `event`: was it passed? then ring     load `prod`: anything new? then go on, else sleep

Without both fences each could miss the other and sleep. Stores keep their order on x86-64, the only architecture that
the project runs on, so that a slot is seen before the index that publishes it.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Callable

__all__ = ["COUNT_MASK", "Sealed", "Unsealed", "check_sealed", "make_fence", "passes"]

COUNT_MASK = 0xFFFF_FFFF
"""Indices count without end, modulo 2³². The slot of an index is its remainder by the ring's size."""

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE: no new writable mapping, not even through `/proc/self/fd`. Python 3.11 has no name for it."""


class Unsealed(Exception):
    """A descriptor is not the sealed memory that a grant must be. `str()` says in what."""


def make_fence() -> Callable[[], None]:
    """A full memory barrier for one thread's own use.

    Taking an unlocked lock is LOCK CMPXCHG on x86-64. The lock must be free, so that no two threads may share one.
    """
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire(False)
        release()

    return fence


def passes(published: int, before: int, event: int) -> bool:
    """Whether going from `before` to `published` has passed the other side's `event` (RING_PUSH_AND_CHECK_NOTIFY)."""
    return (published - event) & COUNT_MASK < (published - before) & COUNT_MASK


class Sealed:
    """Memory made to be granted: a memfd of fixed size, all its pages there, mapped writable by its owner.

    With `read_only_to_others` nobody else can ever map it writable. `descriptor` is the owner's to send and close.
    """

    def __init__(self, name: str, size_bytes: int, *, read_only_to_others: bool) -> None:
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.descriptor, 0, size_bytes)
            self._map = mmap.mmap(self.descriptor, size_bytes, mmap.MAP_SHARED)
            seals = _FIXED_SIZE | fcntl.F_SEAL_SEAL | (_FUTURE_WRITE if read_only_to_others else 0)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.view = memoryview(self._map)

    def unmap(self) -> None:
        """Give the mapping back. Every view made of `view` must have been released."""
        self.view.release()
        self._map.close()


def check_sealed(descriptor: int, size_bytes: int, *, writable: bool) -> memoryview:
    """Map memory that another granted, after looking that it can neither shrink under us nor lack pages.

    The mapping is not populated: that was measured to take 3 ms for 6 MiB, of every outage, and few pages are used.

    Raises Unsealed, the granter's fault. The descriptor stays the caller's.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        status = os.fstat(descriptor)
    except OSError as error:
        raise Unsealed(f"not a memfd: {error.strerror}") from None
    if seals & _FIXED_SIZE != _FIXED_SIZE:
        raise Unsealed(f"seals {seals:#x} let it shrink or grow")
    if status.st_size != size_bytes:
        raise Unsealed(f"{status.st_size} bytes, not {size_bytes}")
    if status.st_blocks * 512 < size_bytes:
        raise Unsealed(f"only {status.st_blocks * 512} of {size_bytes} bytes have pages")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return memoryview(mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, protection))
    except OSError as error:
        raise Unsealed(f"cannot be mapped: {error.strerror}") from None
