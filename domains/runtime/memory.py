"""Memory that is cheap to clone.

A clone copies one page-table entry for each page of the zygote, and the child's end takes each down again: with 4 KiB
pages that is a third of a domain's start and most of its teardown. Huge pages are copied 512 pages at a time.
"""

import contextlib
import gc
import os

from domains.runtime import libc

__all__ = ["settle"]

_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_SYS_MADVISE = 28


def settle(proc: int) -> None:
    """Call it when all is imported. The collector will not look at what there is now, so that it writes to no page of
    it in a child; and the pages are merged. `proc` is a descriptor of /proc.
    """
    gc.collect()
    gc.freeze()
    _merge_pages(proc)


def _merge_pages(proc: int) -> None:
    """Put this process's own memory into huge pages where it fits (MADV_COLLAPSE, Linux 6.1; before that nothing)."""
    with open(os.open("self/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as maps:
        ranges = [row.split() for row in maps]
    for span, access, _, _, _, *name in ranges:
        if access == "rw-p" and name in ([], ["[heap]"]):
            start, end = (int(bound, 16) for bound in span.split("-"))
            for address in range(-(-start // _HUGE_BYTES) * _HUGE_BYTES, end - _HUGE_BYTES + 1, _HUGE_BYTES):
                with contextlib.suppress(OSError):
                    libc.syscall("madvise", _SYS_MADVISE, address, _HUGE_BYTES, _MADV_COLLAPSE)
