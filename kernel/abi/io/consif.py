"""The console ring: what a guest wrote, for who watches it, and keys for the guest (`xen/include/public/io/console.h`).

Two grants, both owned by the frontend, the guest's actor:

    `out`  frontend writes, backend may only read        `in`  backend writes, frontend reads
       0   header: prod, session, taken, slots taken       0   header: prod, seen, watchers, writer
    4096   the guest's last words, a ring of 512 KiB    4096   slots, 32 × 1024 bytes

`out` is the guest's for its whole life and granted again to each backend incarnation, which can only read it: so it
is the scroll-back too, and outlives every backend. `in` is made anew for each. All numbers are little-endian u64. A
doorbell between the two carries bytes without meaning: look at the ring.

Output has no acknowledgement. `prod` counts what the guest has written since it started, and a watcher goes on where he
was by that number, whichever backend serves him; what was overwritten before it was seen is a gap of so many bytes.
Keys are numbered from 0 in each `session`: the time for which one administrator has the keyboard. `taken` is how many
of them are in the guest's line; who sent them keeps the others, and sends them again to a backend's successor. One that
comes twice is dropped by its number.

Who is to blame: the backend for slots that run ahead, a slot of unknown kind or length, or keys that leave out some;
the frontend for more taken than there was. Either says so by `ConsoleFault` and takes nothing more from the other. Each
reads what the other wrote once, and decides on the copy.
"""

import enum
import struct

__all__ = [
    "BEYOND", "CHUNK_BYTES", "IN_BYTES", "OUT_AT", "OUT_BYTES", "OUT_RING", "PROD", "SEEN", "SESSION", "SLOT", "SLOTS",
    "SLOTS_AT", "SLOTS_TAKEN", "SLOT_BYTES", "SLOT_DATA", "TAIL_BYTES", "TAKEN", "WATCHERS", "WRITER", "SlotKind",
]  # fmt: skip

PROD, SESSION, TAKEN, SLOTS_TAKEN = 0, 8, 9, 16
"""`out`'s header, counted in u64.

`out[PROD]`         bytes that the guest has written. Stored after them.
`out[SESSION]`      whose keys were taken last, 0 for nobody's. Stored after a `TAKEN` of 0.
`out[TAKEN]`        how many keys of that session are in the guest's line.
`out[SLOTS_TAKEN]`  slots of `in` that may be filled again.
"""

SEEN, WATCHERS, WRITER = 8, 9, 10
"""`in`'s header, whose `PROD` counts slots that are filled. The others cannot be wrong: it costs watchers a gap, at
most.

`in[SEEN]`      how far in the guest's output every watcher is.
`in[WATCHERS]`  how many there are. While there are any, the frontend holds the guest up before it overwrites what
                they have not seen, for a bounded time.
`in[WRITER]`    the session that may type, 0 for none. The frontend carries these three, as far as they can be, over
into the next backend's `in`, which so knows who will return.
"""

OUT_AT = SLOTS_AT = 4096
OUT_RING = 512 * 1024
OUT_BYTES = OUT_AT + OUT_RING

CHUNK_BYTES = 65536
"""At most so much is written beyond `prod` before `prod` says so. Of what lies that close to being overwritten nothing
may be believed."""

TAIL_BYTES = 256 * 1024
"""How far back a watcher may begin, and how far he may fall behind before the guest is held up."""

BEYOND = 1 << 62
"""No honest count, and no session, gets there: a guest that writes a gigabyte a second would after a century."""

SLOTS, SLOT_BYTES = 32, 1024
IN_BYTES = SLOTS_AT + SLOTS * SLOT_BYTES

SLOT = struct.Struct("<QQHB5x")
"""Ahead of a slot's data: `session, number, length, kind`. `number` is that of the first key."""

SLOT_DATA = SLOT_BYTES - SLOT.size


class SlotKind(enum.IntEnum):
    """What a slot holds."""

    KEYS = 0
    """Keys of a session."""
    SIZE = 1
    """`rows, columns` of the writer's window, two u16."""
