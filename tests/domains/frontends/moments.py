"""Looking at shared memory as a peer could: between any two lines of the code that writes it, and at its fences."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["at_fences", "between_lines"]

PRODUCT = ("domains.", "drivers.", "kernel.")


@contextmanager
def between_lines(look: Callable[[], None]) -> Iterator[None]:
    """Have `look` called before each line of the product's that this thread runs. What it raises, that line raises."""

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(PRODUCT):
            return None
        if event == "line":
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def at_fences(act: Callable[[], None]) -> Iterator[list[None]]:
    """Have `act` called at each full fence that this thread passes: the last moment at which a peer may act whose act
    must be seen. Gives a list with an item for each."""
    passed: list[None] = []

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "call" and frame.f_code.co_name == "fence" and frame.f_globals["__name__"] == "kernel.abi.io.ring":
            passed.append(None)
            act()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)
