"""Who hears of what: watches that fire, and the events that wait for their clients."""

from drivers.store.connection import Connection
from drivers.store.paths import parent_of
from drivers.store.permissions import OWNER, READ, WRITE, Permissions, granted
from drivers.store.state import State
from drivers.store.tree import Node
from kernel.abi.io.xs_wire import PAYLOAD_MAX

__all__ = ["NOBODY", "Events"]

NOBODY = (0, 0)
"""Not a domain's request is the cause."""


class Events:
    """`cause`: the request that is being executed, if it is a domain's. `woken`: who has got events."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.cause = NOBODY
        self.woken: set[int] = set()

    def may(self, client: Connection, permissions: Permissions) -> int:
        """READ, WRITE and OWNER, or-ed."""
        if not client.domid:
            return READ | WRITE | OWNER
        domain = self._state.domains.get(client.domid)
        return granted(permissions, client.domid, domain.target if domain else None)

    def forget_watches(self, client: Connection) -> None:
        """All of one client."""
        for watch in client.watches.values():
            self._state.watches.remove(watch)
        client.watches.clear()

    def fire(self, path: bytes, exact: bool, node: Node | None, old: Permissions | None = None) -> None:
        """The node has changed; `exact`: watches of nodes above it do not fire; `old`: what its permissions were."""
        if self._state.watches:
            for watch in self._state.watches.of(path, exact):
                client = self._state.connections[watch.connection]
                if self._may_hear(client, path, node, old):
                    self.queue(client, watch.event(path), self.cause)

    def _may_hear(self, client: Connection, path: bytes, node: Node | None, old: Permissions | None) -> bool:
        """Who could read the node, or can, or can read its parent."""
        if old is not None and self.may(client, old) & READ:
            return True
        if node is None:
            return False
        if self.may(client, node.permissions) & READ:
            return True
        parent = self._state.tree.get(parent_of(path))
        return parent is not None and bool(self.may(client, parent.permissions) & READ)

    def fire_special(self, name: bytes) -> None:
        """`@introduceDomain` or `@releaseDomain`."""
        permissions = self._state.special[name]
        for watch in self._state.watches.of(name, exact=True):
            client = self._state.connections[watch.connection]
            if self.may(client, permissions) & READ:
                self.queue(client, watch.event(name), NOBODY)

    def queue(self, client: Connection, body: bytes, cause: tuple[int, int]) -> None:
        """One event for a client, who is overdue if he has too many then, or has the most of all that are too many."""
        if client.overdue or len(body) > PAYLOAD_MAX:
            return
        event = client.queue(body, cause)
        if event is None:
            return
        self.woken.add(client.number)
        room = self._state.event_room
        room.used += event.weight()
        if cause[0]:
            unsettled = self._state.connections[cause[0]].unsettled
            unsettled[cause[1]] = unsettled.get(cause[1], 0) + 1
        if client.queued_bytes > room.limit >> (3 if client.domid else 1):
            self._give_up(client)
        elif room.used > room.limit:
            self._give_up(max(self._state.connections.values(), key=lambda each: (each.queued_bytes, each.number)))

    def _give_up(self, client: Connection) -> None:
        """It does not read: it must not cost the others anything."""
        self.settle(client, client.next_event)
        self.forget_watches(client)
        client.overdue = True
        self.woken.add(client.number)

    def settle(self, client: Connection, number: int) -> None:
        """Its events up to this one wait no more, and who caused them does not either."""
        while client.events and client.events[0].number <= number:
            event = client.take_event()
            self._state.event_room.used -= event.weight()
            cause = self._state.connections.get(event.cause[0])
            if cause is not None:
                cause.unsettled[event.cause[1]] -= 1
                if not cause.unsettled[event.cause[1]]:
                    del cause.unsettled[event.cause[1]]
