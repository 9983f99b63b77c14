"""All clients of the store, on one data loop."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from domains.runtime.data_loop import DataLoop
from domains.runtime.faults import FaultPoints
from drivers.store.channel import Channel, ChannelBroken
from drivers.store.store import Store
from drivers.store.stream import Stream, StreamBroken
from kernel.abi.ids import DOM0

__all__ = ["Session", "Sessions"]

TURNS = 16
"""Of one client before the others have theirs."""


class Session(Protocol):
    """One client, and what it is to be told."""

    descriptor: int
    blocked: bool
    """Output waits for room."""

    def turn(self) -> bool:
        """Do a bounded part of what there is to do. False when there was nothing.

        Raises EOFError when the client has gone, StreamBroken or ChannelBroken when it should.
        """

    def close(self) -> None:
        """Give its descriptors back."""


class Sessions:
    """Sessions by their connection's number. All on the loop's thread, but for `loop`'s own methods.

    `on_left(connection, why)`: a client has gone, or was made to go because of `why`.
    """

    def __init__(self, store: Store, on_left: Callable[[int, str], None], faults: FaultPoints) -> None:
        self.store = store
        self._faults = faults
        self.loop = DataLoop("store", self)
        self._on_left = on_left
        self._sessions: dict[int, Session] = {}
        self._ready: dict[int, None] = {}
        """Whose turn it is, in order."""
        self._waiting: set[int] = set()
        """Who may not ask now, while others are behind with what it has caused."""
        self._latest = 0
        """Who was last heard of. While the loop lingers, it is asked again: its next request is likely near."""

    def open_channel(self, connection: int, domid: int, descriptor: int) -> None:
        """A domain's channel, in the place of an earlier one."""
        if connection in self._sessions:
            self._drop(connection)
        self.store.connect(connection, domid)
        self._add(connection, Channel(self.store, connection, descriptor))

    def open_stream(self, connection: int, descriptors: list[int]) -> None:
        """An administrator's stream, as Dom0's."""
        self.store.connect(connection, DOM0)
        try:
            session = Stream(self.store, connection, descriptors, self._faults)
        except OSError:
            self.end(connection, "")
            return
        self._add(connection, session)

    def end(self, connection: int, why: str) -> None:
        """A client has gone, and what the store has for it."""
        if connection in self._sessions:
            self._drop(connection)
        self.store.disconnect(connection)
        self._on_left(connection, why)

    def serve(self) -> bool:
        """A turn of each that has something to do; of the one that was last heard of, where nobody has."""
        self._wake()
        for connection in [each for each in self._waiting if self.store.may_ask(each)]:
            self._waiting.discard(connection)
            self._ready[connection] = None
        ready = list(self._ready) or [self._latest]
        self._ready.clear()
        return any([self._turns(connection) for connection in ready])

    def park(self) -> float | None:
        return 0 if self._ready else None

    def _add(self, connection: int, session: Session) -> None:
        self._sessions[connection] = session
        self.loop.watch(session.descriptor, partial(self._heard, connection), edge=True)
        if session.blocked:
            self.loop.await_room(session.descriptor, True)
        self._ready[connection] = None

    def _drop(self, connection: int) -> None:
        session = self._sessions.pop(connection)
        self._ready.pop(connection, None)
        self._waiting.discard(connection)
        self.loop.unwatch(session.descriptor)
        session.close()

    def _heard(self, connection: int) -> None:
        self._ready[connection] = None
        self._latest = connection

    def _wake(self) -> None:
        """Who has got events, or more of them than anybody may leave unread."""
        for connection in self.store.take_woken():
            if self.store.connections[connection].overdue:
                self.end(connection, "it leaves its events unread")
            elif connection in self._sessions:
                self._ready[connection] = None

    def _turns(self, connection: int) -> bool:
        """Several turns of one client. Whether it had anything to do."""
        session = self._sessions.get(connection)
        if session is None:
            return False
        was_blocked = session.blocked
        try:
            turns = 0
            while turns < TURNS and session.turn():
                turns += 1
        except EOFError:
            self.end(connection, "")
            return True
        except (StreamBroken, ChannelBroken) as broken:
            self.end(connection, str(broken))
            return True
        if session.blocked is not was_blocked:
            self.loop.await_room(session.descriptor, session.blocked)
        if turns == TURNS:
            self._ready[connection] = None
        elif not self.store.may_ask(connection):
            self._waiting.add(connection)
        return turns > 0
