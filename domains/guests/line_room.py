"""How many keys the guest's tty takes now. Decides only.

User-Mode Linux 6.1 never reads a line again that its tty once throttled: with less than 128 of its 4,096 bytes free, a
line that has ended among the others (`n_tty_check_throttle`). So the actor types no more than there is room for, and
has the agent in the guest look whether all has been read. That it has not tells nothing: more may still be on its way
through the tty's own buffers.
"""

import struct
from dataclasses import dataclass

__all__ = ["ROOM_BYTES", "LineRoom"]

ROOM_BYTES = 3840
"""Unread at most. A line that is longer, where the tty reads by lines, is cut: Linux itself cuts at 4,095."""

_LINE_ENDS = b"\n\r\x03\x04\x15"
"""Newline, return, and what ends or drops a line that was begun: ^C, ^D, ^U."""


_PACKED = struct.Struct("<4H")


@dataclass(slots=True)
class LineRoom:
    """Feed it `typed` and `looked`, in the order in which they happen.

    `typed_since` all had been read, `begun_before` of a line that had not ended then; `begun` of the present one.
    """

    by_lines: bool = False
    typed_since: int = 0
    begun_before: int = 0
    begun: int = 0

    @classmethod
    def unpack(cls, packed: int) -> "LineRoom":
        """What `pack` gave."""
        by_lines, *counts = _PACKED.unpack(packed.to_bytes(_PACKED.size, "little"))
        return cls(bool(by_lines), *counts)

    def pack(self) -> int:
        """All of it in a u64. 0 is a line in which nothing has been typed yet."""
        counts = (self.by_lines, self.typed_since, self.begun_before, self.begun)
        return int.from_bytes(_PACKED.pack(*counts), "little")

    @property
    def too_long(self) -> bool:
        """All that is unread is one line that has not ended, and there is no room for more of it."""
        return self.by_lines and not self.typed_since and self.begun_before >= ROOM_BYTES

    def room(self) -> int:
        """So many keys may be typed before the next look."""
        return max(0, ROOM_BYTES - self.typed_since - self.begun_before)

    def cut(self, keys: bytes) -> int:
        """How many of the next keys belong to a line that is too long to be read by lines: they are to be dropped."""
        if not self.too_long:
            return 0
        return next((at for at, key in enumerate(keys) if key in _LINE_ENDS), len(keys))

    def fits(self, keys: bytes) -> bytes:
        """The first of these keys, as many as may be typed. The end of a line that is too long always may."""
        return keys[: 1 if self.too_long else self.room()]

    def typed(self, keys: bytes) -> None:
        """They are in the line."""
        self.typed_since += len(keys)
        last = max(keys.rfind(end) for end in _LINE_ENDS)
        self.begun = self.begun + len(keys) if last < 0 else len(keys) - last - 1

    def looked(self, unread: int, by_lines: bool) -> None:
        """What the agent found after all that was typed."""
        self.by_lines = by_lines
        if unread:
            return
        self.begun = self.begun if by_lines else 0
        self.typed_since, self.begun_before = 0, self.begun
