"""The virtio block device (virtio 1.2 §5.2): its features, its configuration space, its requests."""

import enum
import struct
from typing import NamedTuple

from domains.virtio.queue import QueueFault, Segments
from kernel.abi.io.blkif import SECTOR_BYTES

__all__ = [
    "HEADER", "MAX_DISCARD_SECTORS", "MAX_ZEROES_SECTORS", "Request", "S_IOERR", "S_OK", "S_UNSUPP", "Type",
    "config_space", "features", "parse", "parse_range", "write_serial",
]  # fmt: skip

S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
"""VIRTIO_BLK_S_*, the status byte, §5.2.6."""

_DEVICE_ID_BYTES = 20
"""What GET_ID asks for, §5.2.6."""

SEG_MAX = 254
"""Data segments of a request: with header and status a chain is as long as the queue, and no longer (§2.7.5). Of any
size, for each costs a copy of its own: SIZE_MAX is not offered."""

MAX_DISCARD_SECTORS = 1 << 22
"""2 GiB at once: a longer one would keep a vbd's other flushes waiting."""

MAX_ZEROES_SECTORS = 1 << 17
"""64 MiB at once: where the file system beneath an image cannot make zeros by itself, so much is written."""

_F_SEG_MAX, _F_RO, _F_BLK_SIZE, _F_FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
_F_DISCARD, _F_WRITE_ZEROES = 1 << 13, 1 << 14

HEADER = struct.Struct("<IIQ")
"""`struct virtio_blk_req` up to its data: type, reserved, sector."""
_HEADER_BYTES, _HEADER_AT = HEADER.size, HEADER.unpack_from
_RANGE = struct.Struct("<QII")
"""`struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags."""
_UNMAP = 1
"""Of its flags, for WRITE_ZEROES alone: the device may give the space back. All others must be 0."""

_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
"""`struct virtio_blk_config` up to the write-zeroes fields, §5.2.4."""


class Type(enum.IntEnum):
    """VIRTIO_BLK_T_*, §5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


_IN, _KNOWN = int(Type.IN), frozenset(Type)

Request = tuple[int, int, Segments, int, int]
"""A request as the guest laid it out: type, sector, data segments, bytes of data, where its status byte goes."""


class _Split(NamedTuple):
    """A chain's two parts without the request's own bytes, and the header."""

    kind: int
    sector: int
    outgoing: Segments
    incoming: Segments
    status_at: int


def features(*, read_only: bool) -> int:
    """Feature bits of §5.2.3 that a vbd offers.

    FLUSH without CONFIG_WCE is a write-back cache that stays one: the guest shows `write back` and sends flushes.
    """
    base = _F_SEG_MAX | _F_BLK_SIZE | _F_FLUSH
    return base | (_F_RO if read_only else _F_DISCARD | _F_WRITE_ZEROES)


def config_space(sectors: int) -> bytes:
    """The configuration space of a vbd of so many sectors."""
    one_queue, one_segment, aligned_sectors, may_unmap = 1, 1, 8, 1
    return _CONFIG.pack(
        sectors, 0, SEG_MAX, 0, 0, 0, SECTOR_BYTES, 0, 0, 0, 0, 1, 0, one_queue,
        MAX_DISCARD_SECTORS, one_segment, aligned_sectors, MAX_ZEROES_SECTORS, one_segment, may_unmap,
    )  # fmt: skip


def parse(view: memoryview, readable: Segments, writable: Segments) -> Request:
    """The request in a chain. The header is read once. Raises QueueFault when it has no room for header or status.

    Writes take data from the readable part, all others from or into the rest of both. Framing is the driver's
    affair (§2.7.4.1), but Linux gives header and status a descriptor each, and that has the fast way.
    """
    if readable and writable and readable[0][1] == _HEADER_BYTES and writable[-1][1] == 1:
        kind, _, sector = _HEADER_AT(view, readable[0][0])
        status_at = writable[-1][0]
        if kind == _IN and len(readable) == 1 and len(writable) == 2:
            return kind, sector, writable[:1], writable[0][1], status_at
        outgoing, incoming = readable[1:], writable[:-1]
    else:
        kind, sector, outgoing, incoming, status_at = _split(view, readable, writable)
    data, stray = (incoming, outgoing) if kind == Type.IN or kind == Type.GET_ID else (outgoing, incoming)
    if stray and kind in _KNOWN:
        raise QueueFault("data in the wrong direction", f"type {kind}, {len(stray)} segments")
    if len(data) == 1:
        return kind, sector, data, data[0][1], status_at
    return kind, sector, _merged(data), sum([length for _, length in data]), status_at


def _split(view: memoryview, readable: Segments, writable: Segments) -> _Split:
    """The general way: the first 16 readable bytes are the header, the last writable one is the status."""
    header = b""
    outgoing = list(readable)
    while len(header) < _HEADER_BYTES:
        if not outgoing:
            raise QueueFault("header too short", f"{len(header)} bytes")
        at, length = outgoing.pop(0)
        part = min(length, _HEADER_BYTES - len(header))
        header += view[at : at + part].tobytes()
        if part < length:
            outgoing.insert(0, (at + part, length - part))
    if not writable:
        raise QueueFault("no room for the status", "nothing writable")
    at, length = writable[-1]
    incoming = writable[:-1] if length == 1 else (*writable[:-1], (at, length - 1))
    kind, _, sector = HEADER.unpack(header)
    return _Split(kind, sector, tuple(outgoing), incoming, at + length - 1)


def parse_range(view: memoryview, kind: int, segments: Segments, length: int) -> tuple[int, int, bool, int]:
    """Sector, bytes, whether UNMAP is asked for, and status of a DISCARD or WRITE_ZEROES with that data.

    The guest's words are read once.
    """
    most, known = (MAX_ZEROES_SECTORS, _UNMAP) if kind == Type.WRITE_ZEROES else (MAX_DISCARD_SECTORS, 0)
    if length != _RANGE.size:
        return 0, 0, False, S_IOERR
    raw = b"".join(view[at : at + size].tobytes() for at, size in segments)
    sector, sectors, flags = _RANGE.unpack(raw)
    if flags & ~known:
        return 0, 0, False, S_UNSUPP
    if not 0 < sectors <= most:
        return 0, 0, False, S_IOERR
    return sector, sectors * SECTOR_BYTES, bool(flags & _UNMAP), S_OK


def write_serial(view: memoryview, segments: Segments, serial: bytes) -> int:
    """Answer a GET_ID with a serial of at most 20 bytes, padded with zeros. Bytes written."""
    padded = serial[:_DEVICE_ID_BYTES].ljust(_DEVICE_ID_BYTES, b"\0")
    written = 0
    for at, size in segments:
        part = padded[written : written + size]
        view[at : at + len(part)] = part
        written += len(part)
    return written


def _merged(segments: Segments) -> Segments:
    """The same bytes in as few segments as possible: each costs a copy of its own."""
    merged: list[tuple[int, int]] = []
    end = -1
    for at, length in segments:
        if at == end:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((at, length))
        end = at + length
    return tuple(merged)
