"""A guest's memory, as the guest's own device model maps it. Nobody else may."""

import mmap
import os

__all__ = ["GuestMemory", "Unmappable"]


class Unmappable(Exception):
    """The descriptor or the range cannot be the guest's memory. `str()` says why."""


class GuestMemory:
    """One region: guest-physical addresses from `base` on are `view`'s bytes.

    User-Mode Linux has one region, which may start a gigabyte into a sparse file.
    """

    __slots__ = ("base", "size", "view")

    def __init__(self, descriptor: int, base: int, size: int, offset: int) -> None:
        """Map it. The descriptor stays the caller's. Raises Unmappable."""
        try:
            file_size = os.fstat(descriptor).st_size
        except OSError as error:
            raise Unmappable(f"memory region: {error.strerror}") from None
        if size <= 0 or offset % mmap.ALLOCATIONGRANULARITY or offset + size > file_size:
            raise Unmappable(f"memory region of {size} bytes at {offset} in a file of {file_size}")
        try:
            region = mmap.mmap(descriptor, size, mmap.MAP_SHARED, offset=offset)
        except (OSError, ValueError, OverflowError) as error:
            raise Unmappable(f"memory region of {size} bytes at {offset}: {error}") from None
        self.view = memoryview(region)
        self.base = base
        self.size = size
