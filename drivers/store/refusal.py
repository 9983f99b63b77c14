"""What the store says no with."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Refusal"]


class Refusal(Exception):
    """A client asked for what it may not have or what cannot be. `name` is one of `xs_wire.ERRORS`.

    `changes` (`state.Change`) come of the request all the same.
    """

    def __init__(self, name: str, changes: Sequence[tuple[Any, ...]] = ()) -> None:
        super().__init__(name)
        self.name = name
        self.changes = changes

    @property
    def body(self) -> bytes:
        return self.name.encode() + b"\0"
