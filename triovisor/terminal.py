"""This process's terminal, in raw mode for as long as a `with` block."""

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["raw_terminal", "window_size", "woken_by_resize"]

STDIN = 0


@contextlib.contextmanager
def raw_terminal() -> Iterator[bool]:
    """Make the terminal on standard input raw, if it is one: the block gets to know. It is as before at the end,
    whatever ends the block: SIGTERM and SIGHUP too, which end this process with 128 + their number."""
    if not os.isatty(STDIN):
        yield False
        return
    before = termios.tcgetattr(STDIN)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(STDIN, termios.TCSANOW)
        yield True
    finally:
        with contextlib.suppress(termios.error):  # it may be gone, with SIGHUP
            termios.tcsetattr(STDIN, termios.TCSANOW, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def window_size() -> tuple[int, int] | None:
    """Rows and columns, where there is a terminal that has them."""
    try:
        size = os.get_terminal_size(STDIN)
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines and size.columns else None


@contextlib.contextmanager
def woken_by_resize() -> Iterator[int]:
    """A descriptor that is readable once the window has another size."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def tell(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writing, b"\0")

    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield reading
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reading)
        os.close(writing)
