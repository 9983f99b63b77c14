"""Domains and connections that come and go."""

from drivers.store.connection import CONNECTION_BYTES, Connection
from drivers.store.events import NOBODY, Events
from drivers.store.paths import child_of
from drivers.store.permissions import without
from drivers.store.state import Domain, State
from drivers.store.tree import Node, subtree

__all__ = ["Domains"]


class Domains:
    """What it means for the state."""

    def __init__(self, state: State, events: Events) -> None:
        self._state = state
        self._events = events

    def of(self, domid: int) -> list[Connection]:
        """All connections of a domain."""
        return [each for each in self._state.connections.values() if each.domid == domid]

    def connect(self, connection: int, domid: int) -> None:
        """One that is not known."""
        self._state.domains.setdefault(domid, Domain())
        self._state.connections[connection] = Connection(connection, domid)
        self._state.room.used += CONNECTION_BYTES

    def disconnect(self, connection: int) -> None:
        """One that is known: its watches, transactions and events go."""
        client = self._state.connections[connection]
        self._events.forget_watches(client)
        self._events.settle(client, client.next_event)
        del self._state.connections[connection]
        self._state.room.used -= CONNECTION_BYTES
        self._events.woken.discard(connection)

    def introduce(self, domid: int, generation: int = 0) -> None:
        """It has its part in xenstore from now on."""
        domain = self._state.domains.setdefault(domid, Domain())
        domain.introduced, domain.generation = True, generation
        self._events.fire_special(b"@introduceDomain")

    def release(self, domid: int) -> None:
        """It is gone: its connections and nodes, and what others gave it."""
        for client in self.of(domid):
            self.disconnect(client.number)
        introduced = self._state.domains.pop(domid).introduced
        for domain in self._state.domains.values():
            if domain.target == domid:
                domain.target = None
        self._events.cause = NOBODY
        if self._state.tree.owned.get(domid):
            self._remove_owned(domid)
        for node in self._state.tree.nodes.values():
            node.permissions = without(node.permissions, domid)
        for name, permissions in self._state.special.items():
            owner = (0 if permissions[0][0] == domid else permissions[0][0], permissions[0][1])
            self._state.special[name] = (owner, *(each for each in permissions[1:] if each[0] != domid))
        for client in self._state.connections.values():
            for transaction in client.transactions.values():
                transaction.domain_gone(domid)
        if introduced:
            self._events.fire_special(b"@releaseDomain")

    def _remove_owned(self, domid: int) -> None:
        """Its nodes and what is below them, in the tree's order."""
        stack = [b"/"]
        while stack and self._state.tree.owned.get(domid):
            path = stack.pop()
            node = self._state.tree.nodes[path]
            if node.permissions[0][0] == domid and path != b"/":
                self._remove(path, node)
            else:
                stack += [child_of(path, name) for name in reversed(node.children)]

    def _remove(self, root: bytes, node: Node) -> None:
        for path, each in list(subtree(self._state.tree, root, node)):
            self._events.fire(path, path != root, each)
            self._state.tree.remove(path)
