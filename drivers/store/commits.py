"""Many changes in one step: the end of a transaction, and what the hypervisor puts."""

from collections.abc import Iterable

from drivers.store.connection import Connection
from drivers.store.errors import EAGAIN, ENOMEM, ENOSPC, Refused
from drivers.store.events import NOBODY, Events
from drivers.store.paths import parent_of
from drivers.store.permissions import Permissions
from drivers.store.state import Domain, State
from drivers.store.transactions import Change, Transaction
from drivers.store.tree import subtree

__all__ = ["Commits"]


class Commits:
    """First all is checked, then all is done; watches fire as each node changes."""

    def __init__(self, state: State, events: Events) -> None:
        self._state = state
        self._events = events

    def check(self, client: Connection, transaction: Transaction, changes: list[Change]) -> None:
        """Raises Refused if the changes cannot be."""
        if transaction.failed:
            raise Refused(ENOMEM)
        if transaction.conflicts():
            raise Refused(EAGAIN)
        grown: dict[int, int] = {}
        more = 0
        for change in changes:
            for node, sign in ((change.node, 1), (self._state.tree.get(change.path), -1)):
                if node is not None:
                    grown[node.permissions[0][0]] = grown.get(node.permissions[0][0], 0) + sign
                    more += sign * (len(change.path) + node.weight())
        self._state.room.need(more)
        for domid, count in grown.items() if client.domid else ():
            if domid and count > 0 and self._state.tree.owned.get(domid, 0) + count > self._state.quotas.nodes:
                raise Refused(ENOSPC)

    def commit(self, client: Connection, number: int, tx_id: int, op: int, reply: bytes, changes: list[Change]) -> None:
        """End a transaction with this reply."""
        del client.transactions[tx_id]
        client.last = (number, op, reply)
        self._events.cause = (client.number, number) if client.domid else NOBODY
        for path, node, fires, exact, old in changes:
            self._state.tree.place(path, node)
            if fires:
                self._events.fire(path, exact, node, old)

    def put(self, nodes: Iterable[tuple[bytes, bytes | None]], permissions: Permissions | None) -> None:
        """Write and remove as Dom0. What it may not is the caller's to check."""
        self._events.cause = NOBODY
        for domid, _ in permissions or ():
            self._state.domains.setdefault(domid, Domain())
        view = Transaction(self._state.tree, 0)
        for path, value in nodes:
            self._put_one(view, path, value, permissions)
        for change in view.changes():
            self._state.tree.place(change.path, change.node)
            if change.fires:
                self._events.fire(change.path, change.exact, change.node, change.old)

    def _put_one(self, view: Transaction, path: bytes, value: bytes | None, permissions: Permissions | None) -> None:
        missing, above = [path], path
        while (node := view.get(above)) is None:
            missing.append(above)
            above = parent_of(above)
        if value is None:
            for each, _ in list(subtree(view, path, node)) if above == path else ():
                view.fire(each, each != path)
                view.remove(each)
            return
        inherited = permissions or node.permissions
        for each in reversed(missing[1:]):
            view.add(each, b"", inherited)
        if (written := view.get(path)) is not None:
            view.write(path, written, value)
            view.set_permissions(path, written, permissions or written.permissions)
        view.fire(path, False)
