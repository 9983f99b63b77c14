"""The hypervisor's log as it is written: when what happened, by its own clock, at no cost to what is measured."""

import time
from collections.abc import Callable

from bench.load import BenchError
from triovisor import run_log
from triovisor.run_log import Event

__all__ = ["Event", "LogTail", "is_event"]

POLL_S = 0.002
"""Only how soon an event is noticed: its time is in it."""


class LogTail(run_log.LogTail):
    """With a wait that fails as a bench does."""

    def find(self, wanted: Callable[[Event], bool], since: int = 0) -> Event | None:
        """The first event that is wanted, of those read so far from number `since` on."""
        return next((event for event in self.events[since:] if wanted(event)), None)

    def wait(self, wanted: Callable[[Event], bool], what: str, since: int = 0, deadline_s: float = 10.0) -> Event:
        """The first event that is wanted, from number `since` on. Raises BenchError when it does not come."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.read()
            event = self.find(wanted, since)
            if event is not None:
                return event
            if time.monotonic() > deadline:
                raise BenchError(f"no {what} within {deadline_s:g} s: {self.path} has what there was instead")
            time.sleep(POLL_S)


def is_event(event_name: str, **fields: object) -> Callable[[Event], bool]:
    """An event of this name with these fields."""
    return lambda event: event["event"] == event_name and all(event.get(key) == value for key, value in fields.items())
