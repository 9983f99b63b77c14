"""How `tv` prints: text for a person, JSON for a script, bytes as they are."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triovisor.render import Table

__all__ = ["print_table", "print_value", "write_all"]


def print_value(value: Any, text: Callable[[Any], str], json: bool) -> None:
    """As JSON in one line, or as `text` makes it."""
    if json:
        import msgspec

        print(msgspec.json.encode(value).decode())
    else:
        print(text(value))


def print_table(table: "Table") -> None:
    """For a person, fitted to the terminal; elsewhere whole lines."""
    if not (sys.stdout and sys.stdout.isatty()):
        from triovisor.render import columns

        print(columns(table))
        return
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(*table.head, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    Console().print(shown)


def write_all(stream: int, data: bytes) -> None:
    """Write all of it to this process's own stream. Whoever shares a terminal may have made it non-blocking."""
    import select

    descriptor = int(stream)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
