"""The journal: shared memory that outlives the process, and from which its successor knows all that it had answered.

    0          which half counts: 1 or 2; 0 in memory that was never used
    1          version of what is in the records
    64         half 1: records, one after the other, and behind the last one four zeros
    …          half 2: the same

    record     u32 length of what follows the sum, u32 CRC-32 of that, and that. The first record of a half is a
               snapshot, the others say what has happened since.

The process may be killed between any two bytes that it writes. A record's length is written when all else of it is
there, the four zeros behind it included, and a length that is half written does not fit the sum. A half is written anew
only while the other one counts; one byte then makes it the one that counts.
"""

import struct
import zlib

__all__ = ["Journal", "JournalBroken"]

VERSION = 1
HEADER_BYTES = 64
HEAD = struct.Struct("<II")
END = bytes(4)
OVERHEAD = HEAD.size + len(END)
LEAST_BYTES = 1 << 16
FEW_RECORDS = 4096


class JournalBroken(Exception):
    """The memory does not hold a journal of this version: the process that wrote it was not this one's predecessor."""


class Journal:
    """Appends records, and reads what a predecessor appended.

    `memory` is all zero at first. A snapshot is due after `few_records`, and one more for each node: so neither it nor
    a recovery takes long. Raises JournalBroken, and ValueError for memory that is too small.
    """

    def __init__(self, memory: memoryview, few_records: int = FEW_RECORDS) -> None:
        if len(memory) < LEAST_BYTES:
            raise ValueError(f"a journal of {len(memory)} bytes is too small, at least {LEAST_BYTES} are needed")
        self._memory = memory
        self.few_records = few_records
        self.half_bytes = (len(memory) - HEADER_BYTES) // 2
        self._half = memory[0]
        self.count = 0
        """Records since the snapshot."""
        self._at = self._end = 0
        if self._half > 2 or (self._half and memory[1] != VERSION):
            raise JournalBroken(f"version {memory[1]}, half {self._half}")

    def read(self) -> list[bytes]:
        """The snapshot and all records after it, oldest first; nothing in memory that was never used."""
        if not self._half:
            return []
        at = HEADER_BYTES + (self._half - 1) * self.half_bytes
        self._end = at + self.half_bytes
        records = []
        while (record := self._record(at)) is not None:
            records.append(record)
            at += HEAD.size + len(record)
        if not records:
            raise JournalBroken("the half that counts has no snapshot")
        self._at = at
        self.count = len(records) - 1
        return records

    def _record(self, at: int) -> bytes | None:
        if at + OVERHEAD > self._end:
            return None
        length, crc = HEAD.unpack(self._memory[at : at + HEAD.size])
        start = at + HEAD.size
        if not length or start + length + len(END) > self._end:
            return None
        record = bytes(self._memory[start : start + length])
        return record if zlib.crc32(record) == crc else None

    @property
    def left(self) -> int:
        """How long a record may be appended."""
        return self._end - self._at - OVERHEAD

    def append(self, record: bytes) -> None:
        """It is there, whole, when this returns. Not longer than `left`."""
        at, length = self._at, len(record)
        assert at + length + OVERHEAD <= self._end, "no room for a record"
        memory = self._memory
        after = at + 8 + length
        memory[at + 4 : after + 4] = b"%s%s\0\0\0\0" % (zlib.crc32(record).to_bytes(4, "little"), record)
        memory[at : at + 4] = length.to_bytes(4, "little")
        self._at = after
        self.count += 1

    def rotate(self, snapshot: bytes) -> bool:
        """Begin the other half with a snapshot; False, and nothing done, if it is too long for it."""
        if len(snapshot) + OVERHEAD > self.half_bytes:
            return False
        half = 2 if self._half == 1 else 1
        self._at = HEADER_BYTES + (half - 1) * self.half_bytes
        self._end = self._at + self.half_bytes
        self.append(snapshot)
        self._memory[1:2] = bytes([VERSION])
        self._memory[0:1] = bytes([half])
        self._half = half
        self.count = 0
        return True
