"""A core's headers, by a reader of its own; and where a kernel's memory is, from what its process has mapped."""

import struct

import pytest

from domains.guests.core_elf import (
    MAX_SEGMENTS,
    Memory,
    Region,
    elf_headers,
    find_memory,
    headers_bytes,
    mapped_again,
    parse_maps,
)

MAPS = """\
60000000-60001000 r--p 00000000 fe:00 2170887                            /usr/bin/linux.uml
60001000-60aa8000 rw-p 00000000 00:00 0                                  [heap]
60aa8000-61000000 rw-s 00aa8000 00:79 3                                  /dev/shm/#3 (deleted)
61000000-63000000 rwxs 01000000 00:79 3                                  /dev/shm/#3 (deleted)
63800000-63801000 rwxs 00ca4000 00:79 3                                  /dev/shm/#3 (deleted)
63802000-63803000 rw-s 00001000 00:79 9                                  /dev/shm/#9 (deleted)
63804000-63805000 rw-s 7fff0000 00:79 3                                  /dev/shm/#3 (deleted)
7ffff7ddb000-7ffff7dde000 rw-p 00000000 00:00 0
"""
"""As User-Mode Linux has it with mem=48M; with a page of another file, and one that no memory has."""

FILE = "/dev/shm/#3 (deleted)"
MEMORY = Memory(0x60000000, 0x60AA8000, 0x63000000, FILE)
AGAIN = Region(0x63800000, 0x63801000, True, 0xCA4000, FILE)


def segments(headers: bytes) -> list[tuple[int, int, int, int, int]]:
    """Type, offset, address, physical address and size of each (elf(5))."""
    at, size, count = struct.unpack_from("<Q", headers, 32)[0], *struct.unpack_from("<HH", headers, 54)
    found = []
    for number in range(count):
        kind, _, offset, address, physical, length = struct.unpack_from("<IIQQQQ", headers, at + number * size)
        found.append((kind, offset, address, physical, length))
    return found


def test_the_memory_is_what_stands_where_its_offset_says():
    assert find_memory(parse_maps(MAPS)) == MEMORY


@pytest.mark.parametrize("text", ["", MAPS.splitlines()[0], "00400000-00500000 r-xp 00000000 fe:00 7 /usr/bin/python3"])
def test_a_process_without_it_has_no_memory(text):
    assert find_memory(parse_maps(text)) is None


def test_a_page_that_is_mapped_again_is_one_of_its_own_memory():
    assert mapped_again(MEMORY, parse_maps(MAPS)) == [AGAIN]


def test_a_guest_that_maps_pages_without_end_is_told_of_only_so_far():
    regions = [Region(0x63800000 + n * 0x2000, 0x63801000 + n * 0x2000, True, 0xCA4000, FILE) for n in range(9000)]
    assert len(mapped_again(MEMORY, regions)) == MAX_SEGMENTS - 1


@pytest.mark.parametrize("whole", [True, False])
def test_each_segment_leads_to_its_bytes(whole):
    headers = elf_headers(MEMORY, [AGAIN], whole=whole)
    size = headers_bytes(2)
    assert len(headers) == size
    assert size % 4096 == 0
    assert headers[:4] == b"\x7fELF"
    note, memory, again = segments(headers)
    first = MEMORY.base if whole else MEMORY.start
    physical = first - MEMORY.base
    assert memory == (1, size + physical, first, physical, MEMORY.end - first)
    assert again == (1, size + 0xCA4000, AGAIN.start, 0xCA4000, 0x1000)
    assert struct.unpack_from("<III4s", headers, note[1]) == (5, 336, 1, b"CORE")
