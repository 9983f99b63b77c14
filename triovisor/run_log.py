"""A run's log files, read while they are written."""

from pathlib import Path
from typing import Any

import orjson

__all__ = ["Event", "LogTail"]

Event = dict[str, Any]
"""One line: its fields are in `kernel.abi.log_events`. `ns` is CLOCK_MONOTONIC, the same in every process of a host."""


class LogTail:
    """The events of one log file, in order, as they come. The file need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._at = 0

    def read(self) -> list[Event]:
        """The events that are new, also kept in `events`."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        new = [orjson.loads(line) for line in whole.splitlines()]
        self.events += new
        return new
