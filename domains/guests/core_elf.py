"""The ELF core of a PV guest: where User-Mode Linux has its memory, and what a debugger is told of it. Decides only.

Its physical memory is one file, mapped behind its kernel's own image so that a byte's offset in the file is its address
less that of the image: `phys` of an address is the same. So a core is the bytes from there to the end of memory as they
stand, with headers before them. Pages that the kernel has mapped elsewhere (vmalloc) are told as further segments.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "MAX_SEGMENTS", "Memory", "Region", "elf_headers", "find_memory", "headers_bytes", "mapped_again", "parse_maps",
]  # fmt: skip

PAGE = 4096

MAX_SEGMENTS = 4096
"""Beyond them what a guest has mapped is left out: it decides how much that is."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
"""64 bits, little endian, version 1."""
_ET_CORE, _EM_X86_64 = 4, 62
_PT_LOAD, _PT_NOTE, _RWX = 1, 4, 7

_PRSTATUS_BYTES = 336
"""`struct elf_prstatus` on x86-64. A debugger wants one thread; the registers of a CPU that goes on mean nothing."""
_NOTE = struct.pack("<III8s", 5, _PRSTATUS_BYTES, 1, b"CORE") + bytes(_PRSTATUS_BYTES)


@dataclass(frozen=True, slots=True)
class Region:
    """A line of proc_pid_maps(5)."""

    start: int
    end: int
    shared: bool
    offset: int
    path: str


@dataclass(frozen=True, slots=True)
class Memory:
    """`base`: address of the kernel's image, and of the first byte of its memory; `start`: from there on the bytes are
    in the file `path`; `end`: behind the last."""

    base: int
    start: int
    end: int
    path: str


def parse_maps(text: str) -> list[Region]:
    """What a process has mapped, lowest first."""
    regions = []
    for line in text.splitlines():
        span, access, offset, _device, _inode, *path = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in span.split("-"))
        regions.append(Region(start, end, access[3] == "s", int(offset, 16), path[0] if path else ""))
    return regions


def find_memory(regions: Sequence[Region]) -> Memory | None:
    """The memory of a kernel among what its process has mapped; None where it has none yet."""
    base = regions[0].start if regions else 0
    own = [region for region in regions if region.shared and region.start - region.offset == base]
    return Memory(base, own[0].start, max(region.end for region in own), own[0].path) if own else None


def mapped_again(memory: Memory, regions: Sequence[Region]) -> list[Region]:
    """Pages of it that the kernel has mapped at further addresses, as far as they are told."""
    size = memory.end - memory.base
    again = [
        region
        for region in regions
        if region.shared
        and region.path == memory.path
        and region.start >= memory.end
        and region.offset + region.end - region.start <= size
    ]
    return again[: MAX_SEGMENTS - 1]


def headers_bytes(segments: int) -> int:
    """Of all headers, so that what follows begins on a page."""
    needed = _HEADER.size + (segments + 1) * _SEGMENT.size + len(_NOTE)
    return -(-needed // PAGE) * PAGE


def elf_headers(memory: Memory, again: Sequence[Region], *, whole: bool) -> bytes:
    """`headers_bytes` of them. `whole`: the core has the kernel's image; else that is a hole, and no segment has it."""
    size = headers_bytes(1 + len(again))
    first = memory.base if whole else memory.start
    loads = [(first, first - memory.base, memory.end - first)]
    loads += [(region.start, region.offset, region.end - region.start) for region in again]
    note_at = _HEADER.size + (len(loads) + 1) * _SEGMENT.size
    parts = [
        _HEADER.pack(
            _IDENT, _ET_CORE, _EM_X86_64, 1, 0, _HEADER.size, 0, 0,
            _HEADER.size, _SEGMENT.size, len(loads) + 1, 0, 0, 0,
        ),
        _SEGMENT.pack(_PT_NOTE, 0, note_at, 0, 0, len(_NOTE), 0, 4),
        *(_SEGMENT.pack(_PT_LOAD, _RWX, size + phys, at, phys, length, length, PAGE) for at, phys, length in loads),
        _NOTE,
    ]  # fmt: skip
    return b"".join(parts).ljust(size, b"\0")
