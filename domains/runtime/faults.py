"""Fault points: named places in a domain's work where it can be told to die, so that a test can choose the moment."""

import ctypes

__all__ = ["FaultPoints"]


class FaultPoints:
    """Points that are armed to crash. Empty, as in a domain that nobody tampers with, it costs its user one look."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def arm(self, point: str, count: int) -> None:
        """Crash when `point` is reached the `count`-th time from now."""
        self._left[point] = count

    def hit(self, point: str) -> None:
        """The domain's work has reached `point`."""
        left = self._left.get(point)
        if left is None:
            return
        self._left[point] = left - 1
        if left == 1:
            crash()


def crash() -> None:
    """Die by SIGSEGV, at once, with all threads: PID 1 of a namespace cannot kill itself with SIGKILL."""
    ctypes.string_at(0)
