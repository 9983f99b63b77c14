"""Shared memory whose writer can be killed between any two bytes."""

from typing import cast

__all__ = ["Killed", "Memory"]


class Killed(Exception):
    """The writer is gone; what it has written is there."""


class Memory:
    """Like a memoryview, as far as a journal uses one. `left` bytes can still be written, None for any number."""

    def __init__(self, held: bytes | bytearray) -> None:
        self.held = bytearray(held)
        self.left: int | None = None

    def view(self) -> memoryview:
        return cast(memoryview, self)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, key):
        return self.held[key]

    def __setitem__(self, key: slice, data: bytes) -> None:
        assert key.stop - key.start == len(data)
        if self.left is not None:
            if len(data) > self.left:
                self.held[key.start : key.start + self.left] = data[: self.left]
                raise Killed
            self.left -= len(data)
        self.held[key] = data
