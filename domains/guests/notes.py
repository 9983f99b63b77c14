"""What a guest's actor notes for its successor, in memory that outlives it: the console's last words, and whether the
agent has ever been ready."""

import mmap

__all__ = ["Notes"]

_READY_AT, _LENGTH_AT, _TEXT_AT = 0, 8, 16


class Notes:
    """Each actor maps the same memory, one at a time. A text that a death cut short is of two halves, new and old."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        self._memory = mmap.mmap(descriptor, 0)
        self._room = len(self._memory) - _TEXT_AT

    @property
    def agent_was_ready(self) -> bool:
        return self._memory[_READY_AT] != 0

    def note_agent_ready(self) -> None:
        self._memory[_READY_AT] = 1

    @property
    def last_words(self) -> bytes:
        """As noted last."""
        length = int.from_bytes(self._memory[_LENGTH_AT:_TEXT_AT], "little")
        return self._memory[_TEXT_AT : _TEXT_AT + min(length, self._room)]

    def note_last_words(self, text: bytes) -> None:
        """The last bytes of what the console said, as many as there is room for."""
        text = text[-self._room :]
        self._memory[_TEXT_AT : _TEXT_AT + len(text)] = text
        self._memory[_LENGTH_AT:_TEXT_AT] = len(text).to_bytes(_TEXT_AT - _LENGTH_AT, "little")
