"""A stream's slot: the message that is being sent, and how far it is, in memory that outlives the incarnation.

The order of stores here is what makes a kill between any two of them decidable, together with two things that the
kernel keeps: how much of the stream's input was looked at and not yet taken (SO_PEEK_OFF), and what lies in the pipe
through which all output goes.
"""

import mmap
from enum import IntEnum

from kernel.abi.store_io import SLOT_BYTES

__all__ = ["Phase", "Slot"]

_PHASE, _NUMBER, _EVENT, _LOOKED_AT, _LENGTH, _SIZE, _REQUESTS, _EVENTS = range(8)
_DATA = 64


class Phase(IntEnum):
    """Where the message in a slot is."""

    IDLE = 0
    """There is none."""
    WRITING = 1
    """It is on its way into the pipe, and the request that it answers out of the stream."""
    SENDING = 2
    """It is in the pipe, and on its way into the stream."""


class Slot:
    """One stream's. Numbers are 0 where there is none."""

    def __init__(self, descriptor: int) -> None:
        """Map it. Raises OSError for what is no such memory. The descriptor is the caller's."""
        self._memory = memoryview(mmap.mmap(descriptor, SLOT_BYTES))
        self._words = self._memory[:_DATA].cast("Q")

    @property
    def phase(self) -> Phase:
        return Phase(self._words[_PHASE])

    @property
    def answered(self) -> int:
        """The last request whose answer is sent, or on its way."""
        words = self._words
        return max(words[_REQUESTS], words[_NUMBER] if words[_PHASE] == Phase.SENDING else 0)

    @property
    def events(self) -> int:
        """The last one that was sent."""
        return self._words[_EVENTS]

    @property
    def looked_at(self) -> int:
        """Bytes of input that were looked at and not taken, before the request was taken."""
        return self._words[_LOOKED_AT]

    @property
    def length(self) -> int:
        """Bytes of the request; 0 where the message is an event."""
        return self._words[_LENGTH]

    @property
    def message(self) -> memoryview:
        return self._memory[_DATA : _DATA + self._words[_SIZE]]

    def begin(self, message: bytes, *, number: int = 0, event: int = 0, looked_at: int = 0, length: int = 0) -> None:
        """A message is to be sent: the answer to request `number`, or an event."""
        words = self._words
        words[_NUMBER], words[_EVENT] = number, event
        words[_LOOKED_AT], words[_LENGTH] = looked_at, length
        words[_SIZE] = len(message)
        self._memory[_DATA : _DATA + len(message)] = message
        words[_PHASE] = Phase.WRITING

    def written(self) -> None:
        """It is in the pipe, and its request is taken."""
        self._words[_PHASE] = Phase.SENDING

    def sent(self) -> None:
        """It is in the stream."""
        words = self._words
        if words[_NUMBER]:
            words[_REQUESTS] = words[_NUMBER]
        if words[_EVENT]:
            words[_EVENTS] = words[_EVENT]
        words[_PHASE] = Phase.IDLE

    def close(self) -> None:
        """Unmap it."""
        memory = self._memory.obj
        self._words.release()
        self._memory.release()
        assert isinstance(memory, mmap.mmap)
        memory.close()
