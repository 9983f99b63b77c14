"""Events of a log file, as they come."""

import time
from collections.abc import Callable
from typing import Any

from triovisor.run_log import Event, LogTail

__all__ = ["DEADLINE_S", "Event", "EventLog", "wait_until"]

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


class EventLog(LogTail):
    """With waits that fail as a test does."""

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
