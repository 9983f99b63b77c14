"""Events of a log file, as they come."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

__all__ = ["DEADLINE_S", "Event", "EventLog", "wait_until"]

Event = dict[str, Any]

DEADLINE_S = 20.0
"""For whatever a test waits for: far beyond what a loaded machine needs."""

LOOK_S = 0.002


def wait_until(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Look until `holds()` is true, and give what it gave; fail when it is not within the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(LOOK_S)
    return value


class EventLog:
    """The events of one file, in order. The file need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._at = 0

    def read(self) -> list[Event]:
        """The events that are new; they are also kept in `events`."""
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

    def mark(self) -> int:
        """The number of events so far, for `since`."""
        self.read()
        return len(self.events)

    def all(self, event: str, since: int = 0, **fields: object) -> list[Event]:
        """The events of this name with these fields."""
        self.read()
        return [each for each in self.events[since:] if each["event"] == event and fields.items() <= each.items()]

    def wait(self, event: str, since: int = 0, **fields: object) -> Event:
        """The first such event, waited for."""
        found: list[Event] = wait_until(lambda: self.all(event, since, **fields), f"{event} {fields} in {self.path}")
        return found[0]
