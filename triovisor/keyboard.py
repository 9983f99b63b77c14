"""What was typed and is not in the guest's line yet: kept here, and sent again to the console driver's successor.

Decides only: no terminal and no socket here.
"""

from kernel.abi.console_io import KEYS_BYTES, ConsoleKeys, ConsoleRole

__all__ = ["ROOM_BYTES", "Keyboard"]

ROOM_BYTES = 65536
"""Kept at most: then nothing more is read from who types, until the guest has read."""


class Keyboard:
    """`session` is None before the first word about it, 0 while another has the keyboard."""

    def __init__(self) -> None:
        self.session: int | None = None
        self._keys = bytearray()
        self._base = 0
        self._sent = 0

    @property
    def untaken(self) -> int:
        """Keys that are not known to be in the guest's line."""
        return len(self._keys)

    @property
    def room(self) -> int:
        """So many more may be typed. To a keyboard that is another's everything may be: it goes nowhere."""
        return ROOM_BYTES if self.session == 0 else ROOM_BYTES - len(self._keys)

    def type(self, keys: bytes) -> bool:
        """Keep keys to be sent. False where the keyboard is another's: they are dropped."""
        if self.session == 0:
            return False
        self._keys += keys
        return True

    def given(self, role: ConsoleRole) -> int:
        """The driver's word whose the keyboard is. Returns how many keys are dropped because it is another's now.
        Raises ValueError for a word that cannot be."""
        dropped = 0
        if role.session == 0:
            dropped = len(self._keys)
            self._keys.clear()
        elif role.session != self.session:
            self._base = 0
        self.session = role.session
        self.taken(role.taken)
        self._sent = 0
        return dropped

    def taken(self, number: int) -> None:
        """So many of the session's keys are in the guest's line. Raises ValueError for more than there were."""
        count = number - self._base
        if not 0 <= count <= len(self._keys):
            if self.session == 0:
                return
            raise ValueError(f"{number} keys taken of {self._base + len(self._keys)}")
        del self._keys[:count]
        self._base = number
        self._sent = max(0, self._sent - count)

    def disconnected(self) -> None:
        """What was sent and not taken is to be sent again, once the driver has said whose the keyboard is."""
        self._sent = len(self._keys)

    def next(self) -> ConsoleKeys | None:
        """What to send next; `sent` when it is."""
        keys = bytes(self._keys[self._sent : self._sent + KEYS_BYTES])
        return ConsoleKeys(self._base + self._sent, keys) if keys and self.session else None

    def sent(self, keys: ConsoleKeys) -> None:
        """They are on their way."""
        self._sent += len(keys.data)
