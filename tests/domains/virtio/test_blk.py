"""Block requests in virtqueue chains, and the device's configuration."""

import struct

import pytest

from domains.virtio import blk
from domains.virtio.blk import Type
from domains.virtio.queue import QueueFault

VIEW_BYTES = 65536


def memory(kind: int, sector: int) -> memoryview:
    view = memoryview(bytearray(VIEW_BYTES))
    struct.pack_into("<IIQ", view, 0, kind, 7, sector)
    return view


def test_a_read_and_a_write_of_one_piece():
    assert blk.parse(memory(0, 9), ((0, 16),), ((4096, 512), (100, 1))) == (0, 9, ((4096, 512),), 512, 100)
    assert blk.parse(memory(1, 9), ((0, 16), (4096, 512)), ((100, 1),)) == (1, 9, ((4096, 512),), 512, 100)


def test_pieces_that_lie_together_are_one():
    data = ((4096, 512), (4608, 512), (8192, 512), (512, 512), (1024, 1024))
    parsed = blk.parse(memory(0, 0), ((0, 16),), (*data, (100, 1)))
    assert parsed == (0, 0, ((4096, 1024), (8192, 512), (512, 1536)), 3072, 100)


def test_framing_is_the_drivers_affair():
    """virtio 1.2 §2.7.4.1: header, data and status may be cut up as the driver likes."""
    view = memory(1, 9)
    view[4096:4104] = view[8:16]
    parsed = blk.parse(view, ((0, 8), (4096, 8 + 100), (8192, 412)), ((100, 1),))
    assert parsed == (1, 9, ((4104, 100), (8192, 412)), 512, 100)
    parsed = blk.parse(memory(0, 9), ((0, 16),), ((4096, 513),))
    assert parsed == (0, 9, ((4096, 512),), 512, 4608)


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ((), ()),
        ((), ((4096, 512), (100, 1))),
        (((0, 15),), ((100, 1),)),
        (((0, 8), (8, 7)), ((100, 1),)),
        (((0, 16),), ()),
        (((0, 16), (4096, 512)), ()),
    ],
)
def test_no_room_for_header_or_status_is_a_fault(readable, writable):
    with pytest.raises(QueueFault):
        blk.parse(memory(0, 0), readable, writable)


@pytest.mark.parametrize("kind", [Type.IN, Type.GET_ID])
def test_data_for_the_device_in_a_read_is_a_fault(kind):
    with pytest.raises(QueueFault):
        blk.parse(memory(kind, 0), ((0, 16), (4096, 512)), ((8192, 512), (100, 1)))


@pytest.mark.parametrize("kind", [Type.OUT, Type.FLUSH, Type.DISCARD, Type.WRITE_ZEROES])
def test_room_for_data_in_a_write_is_a_fault(kind):
    with pytest.raises(QueueFault):
        blk.parse(memory(kind, 0), ((0, 16),), ((8192, 512), (100, 1)))


def test_an_unknown_type_may_have_any_data():
    kind, *_, status_at = blk.parse(memory(77, 0), ((0, 16), (4096, 512)), ((8192, 512), (100, 1)))
    assert (kind, status_at) == (77, 100)


REFUSED, UNKNOWN = (0, 0, False, blk.S_IOERR), (0, 0, False, blk.S_UNSUPP)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (Type.DISCARD, (8, 16, 0), (8, 8192, False, blk.S_OK)),
        (Type.DISCARD, (8, 16, 1), UNKNOWN),
        (Type.DISCARD, (8, 0, 0), REFUSED),
        (Type.DISCARD, (8, blk.MAX_DISCARD_SECTORS, 0), (8, 512 * blk.MAX_DISCARD_SECTORS, False, blk.S_OK)),
        (Type.DISCARD, (8, blk.MAX_DISCARD_SECTORS + 1, 0), REFUSED),
        (Type.WRITE_ZEROES, (8, 16, 0), (8, 8192, False, blk.S_OK)),
        (Type.WRITE_ZEROES, (8, 16, 1), (8, 8192, True, blk.S_OK)),
        (Type.WRITE_ZEROES, (8, 16, 2), UNKNOWN),
        (Type.WRITE_ZEROES, (8, 16, 0x8000_0001), UNKNOWN),
        (Type.WRITE_ZEROES, (8, 0, 1), REFUSED),
        (Type.WRITE_ZEROES, (8, blk.MAX_ZEROES_SECTORS, 0), (8, 512 * blk.MAX_ZEROES_SECTORS, False, blk.S_OK)),
        (Type.WRITE_ZEROES, (8, blk.MAX_ZEROES_SECTORS + 1, 0), REFUSED),
        (Type.WRITE_ZEROES, (8, 0xFFFF_FFFF, 0), REFUSED),
    ],
)
def test_a_discard_or_write_zeroes_has_one_segment_of_a_bounded_length(kind, fields, expected):
    view = memory(kind, 0)
    struct.pack_into("<QII", view, 4096, *fields)
    assert blk.parse_range(view, kind, ((4096, 10), (4106, 6)), 16) == expected
    for length in (0, 15, 17, 32):
        assert blk.parse_range(view, kind, ((4096, length),) if length else (), length) == REFUSED


def test_the_serial_is_cut_and_padded_to_twenty_bytes():
    view = memory(8, 0)
    assert blk.write_serial(view, ((4096, 4), (8192, 100)), b"vda") == 20
    assert bytes(view[4096:4100]) + bytes(view[8192:8208]) == b"vda".ljust(20, b"\0")
    assert blk.write_serial(view, ((4096, 4),), b"x" * 30) == 4


def test_the_configuration_space_has_the_fields_where_the_standard_puts_them():
    """virtio 1.2 §5.2.4."""
    space = blk.config_space(0x1_0000_0001)
    assert len(space) == 60
    assert struct.unpack_from("<Q", space, 0) == (0x1_0000_0001,)
    assert struct.unpack_from("<II", space, 8) == (0, blk.SEG_MAX)
    assert struct.unpack_from("<I", space, 20) == (512,)
    assert struct.unpack_from("<III", space, 36) == (blk.MAX_DISCARD_SECTORS, 1, 8)
    assert struct.unpack_from("<IIB", space, 48) == (blk.MAX_ZEROES_SECTORS, 1, 1)


def test_a_vbd_offers_a_write_back_cache_that_cannot_be_switched():
    for read_only in (False, True):
        offered = blk.features(read_only=read_only)
        assert offered & 1 << 9
        assert not offered & 1 << 11
        assert bool(offered & 1 << 5) == read_only
        assert bool(offered & 1 << 13) != read_only
        assert bool(offered & 1 << 14) != read_only
