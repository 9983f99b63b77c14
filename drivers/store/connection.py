"""One client: its watches, its transactions, and the events that it has not been sent yet."""

from collections import deque
from typing import NamedTuple

from drivers.store.transactions import Transaction
from drivers.store.watches import Watch

__all__ = ["CONNECTION_BYTES", "Connection", "Event"]

CONNECTION_BYTES = 96
"""What one takes in a snapshot beside its watches and events, at most, and with the answer to its last request."""

EVENT_BYTES = 40


class Event(NamedTuple):
    """`cause`: the connection and the number of the domain's request that it is due to, (0, 0) for none."""

    number: int
    body: bytes
    cause: tuple[int, int]

    def weight(self) -> int:
        return EVENT_BYTES + len(self.body)


class Connection:
    """`number` is its name; `domid` says whose it is, and what it may."""

    def __init__(self, number: int, domid: int) -> None:
        self.number = number
        self.domid = domid
        self.last: tuple[int, int, bytes] | None = None
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.events: deque[Event] = deque()
        self.next_event = 1
        self.queued_bytes = 0
        self._queued: set[bytes] = set()
        self.unsettled: dict[int, int] = {}
        """Requests of this one with events that others have not been sent yet, and how many."""
        self.overdue = False
        """It has left more unread than anybody may: to be closed."""

    def queue(self, body: bytes, cause: tuple[int, int]) -> Event | None:
        """A new event, unless the same one waits already: the client learns no more from two.

        Of special ones (`@…`) each counts.
        """
        if body in self._queued and not body.startswith(b"@"):
            return None
        event = Event(self.next_event, body, cause)
        self.next_event += 1
        self._queued.add(event.body)
        self.restore(event)
        return event

    def restore(self, event: Event) -> None:
        """Put one behind the others that the same one will not be merged with: it may have been sent already."""
        self.events.append(event)
        self.queued_bytes += event.weight()

    def merge_no_more(self) -> None:
        """With what is queued now."""
        self._queued.clear()

    def take_event(self) -> Event:
        """The oldest, which is delivered."""
        event = self.events.popleft()
        self._queued.discard(event.body)
        self.queued_bytes -= event.weight()
        return event

    def transaction_id(self) -> int:
        """One that is not in use."""
        while self.next_transaction in self.transactions or not self.next_transaction:
            self.next_transaction = (self.next_transaction + 1) & 0xFFFFFFFF
        found = self.next_transaction
        self.next_transaction = (found + 1) & 0xFFFFFFFF
        return found
