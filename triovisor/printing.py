"""How `tv` prints: text for a person, JSON for a script, bytes as they are."""

import os
import select
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from kernel.abi.guest_io import Stream
from triovisor import render

__all__ = ["print_table", "print_value", "write_all"]


def print_value(value: Any, text: Callable[[Any], str], json: bool) -> None:
    print(msgspec.json.encode(value).decode() if json else text(value))


def print_table(table: render.Table) -> None:
    """For a person, fitted to the terminal; elsewhere whole lines."""
    if not (sys.stdout and sys.stdout.isatty()):
        print(render.columns(table))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*table.head, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    Console().print(shown)


def write_all(stream: Stream, data: bytes) -> None:
    """Write all of it to this process's own stream. Whoever shares a terminal may have made it non-blocking."""
    descriptor = int(stream)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
