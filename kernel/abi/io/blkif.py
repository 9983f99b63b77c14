"""The block ring: how a frontend (a guest's actor) asks a backend (blkback) to read and write its vbd.

Two grants for each backend incarnation, both owned by the frontend and made anew for every successor, of one size:

    `out`  frontend writes, backend may only read        `in`  backend writes, frontend reads
       0   header: req_prod, rsp_event                     0   header: rsp_prod, req_event
    4096   requests, 256 × 32 bytes                     4096   responses, 256 × 4 bytes
   16384   pool: data on its way to the image          16384   pool: data on its way to the guest

All numbers are little-endian. A doorbell between the two carries bytes without meaning: look at the ring.
The driver sees the pools and never the guest's memory.

Who is to blame: the frontend for a wrong request (`decide` in `drivers/blkback/backend.py` has the list), the backend
for a response to a request that it does not hold, an unknown status, or an index that runs ahead. Either says so
by `XenbusFault` and takes nothing more from the other. Each reads what the other wrote once, into locals, and decides
on the copy.

An operation is added under a new number, and no number changes its meaning, so the ABI's version stays: a backend that
does not know it answers `UNSUPPORTED`, which a guest's kernel is told of, and does without (it writes zeros itself).
"""

import enum
import struct

__all__ = [
    "EVENT", "IN_FLIGHT", "MAX_BYTES", "POOL_AT", "PROD", "Op", "REQUEST", "REQUESTS_AT", "REQUEST_BYTES",
    "RESPONSES_AT", "RESPONSE_BYTES", "RING_BYTES", "RspStatus", "SECTOR_BYTES", "SLOTS", "SLOT_MASK",
    "SMALL_RING_BYTES",
]  # fmt: skip

SECTOR_BYTES = 512

SLOTS = 256
"""Requests and responses that a ring holds; so many of one vbd are in flight at most. A power of two: indices wrap."""
SLOT_MASK = SLOTS - 1
IN_FLIGHT = SLOTS

PROD, EVENT = 64 // 4, 128 // 4
"""Where the header's words are, counted in u32. Each has a cache line to itself.

`out[PROD]`   req_prod, requests published. Written by the frontend.
`out[EVENT]`  rsp_event, "ring when rsp_prod passes this". Written by the frontend.
`in[PROD]`    rsp_prod, responses published. Written by the backend. Above what was asked: the backend's fault.
`in[EVENT]`   req_event, "ring when req_prod passes this". Written by the backend. Cannot be wrong: it only costs it.
"""

REQUESTS_AT = 4096
REQUEST = struct.Struct("<HBBIQI12x")
"""One request, written by the frontend: `id, op, flags, length, sector, place`.

`id`      the frontend's own, unique among those in flight; the response carries it back.
`op`      an `Op`; one that the backend does not know is answered `UNSUPPORTED`.
`flags`   0; anything else is the frontend's fault.
`length`  bytes, whole sectors. READ and WRITE: 512 … `MAX_BYTES`. FLUSH: 0. Others: any. Else the frontend's fault.
`sector`  where in the vbd, in sectors. Beyond its end: answered `RANGE`.
`place`   READ: where in `in` the data shall be put; WRITE: where in `out` it lies; in bytes from the grant's start,
          within the pool, else the frontend's fault. Others: 0.
"""
REQUEST_BYTES = REQUEST.size

RESPONSES_AT = 4096
RESPONSE_BYTES = 4
"""One response, one u32 written whole by the backend: the request's id in the low half, an `RspStatus` in the high."""

POOL_AT = 16384
POOL_BYTES = 6 << 20
"""6 MiB each way: 256 requests of a page, and four of 1.25 MiB (what Linux makes of sequential I/O) at once. Twice as
much was measured to be no faster, as it no longer stays in the cache."""

SMALL_POOL_BYTES = 5 << 19
"""2.5 MiB each way, where memory is dearer than speed: 256 requests of a page, and one of 1.25 MiB."""

RING_BYTES, SMALL_RING_BYTES = POOL_AT + POOL_BYTES, POOL_AT + SMALL_POOL_BYTES
"""Size of either grant: one of these, the frontend's choice. Any other is its fault."""

MAX_BYTES = 4 << 20
"""Data of one request at most. It fits the larger part of an empty pool, so that no request waits for ever. In a small
pool there is never room for more than 1.5 MiB at once, if its frontend divides it as ours does."""


class Op(enum.IntEnum):
    """What to do (`BLKIF_OP_*` where Xen has the same)."""

    READ = 0
    WRITE = 1
    FLUSH = 3
    """Everything answered OK before this request was published is on stable storage when it is answered OK."""
    DISCARD = 5
    """The sectors' contents are no longer wanted. A hint: OK does not promise that they read as zeros."""
    WRITE_ZEROES = 7
    """The sectors read as zeros once this is answered OK, as if zeros had been written; their space stays allocated.
    Xen has no such operation; its next free number."""
    ZERO_UNMAP = 8
    """As WRITE_ZEROES, but their space may be given back. An operation of its own and no flag, so that what a frontend
    posts again to a successor is all in the fields that every request has."""


class RspStatus(enum.IntEnum):
    """How a request ended."""

    OK = 0
    IO_ERROR = 1
    NO_SPACE = 2
    READ_ONLY = 3
    RANGE = 4
    UNSUPPORTED = 5
