"""A transaction: a picture of the tree that nobody else changes, and changes that nobody else sees until its end.

It takes each node as it is when it is first looked at. At its end it conflicts if any of those has changed since, or is
there no more, or only now: whether the transaction changed the node or only looked. A picture may be torn: a parent as
it was before, a child as it is after what somebody else did. Such a transaction is going to conflict, and until then
nothing may stumble over it.
"""

from typing import NamedTuple

from drivers.store.errors import ENOSPC, Refused
from drivers.store.paths import name_of, parent_of
from drivers.store.permissions import Permissions
from drivers.store.tree import Node, Tree

__all__ = ["Change", "Transaction"]


class Change(NamedTuple):
    """What the end of a transaction does to one node, in the order in which they were looked at."""

    path: bytes
    node: Node | None
    """What it is now, None for gone."""
    fires: bool
    exact: bool
    old: Permissions | None
    """What it had when it was looked at first, None where it was not there."""


class _Seen:
    """A node as the transaction has it."""

    __slots__ = ("changed", "exact", "fires", "generation", "node", "old")

    def __init__(self, node: Node | None) -> None:
        self.node = node.copy() if node is not None else None
        self.generation = node.generation if node is not None else None
        self.old = node.permissions if node is not None else None
        self.changed = False
        self.fires = False
        self.exact = False


class Transaction:
    """A `View`. `most_nodes` bounds how many it may look at, 0 for any number."""

    def __init__(self, tree: Tree, most_nodes: int) -> None:
        self._tree = tree
        self._most_nodes = most_nodes
        self._seen: dict[bytes, _Seen] = {}
        self.failed = False
        """A request in it was refused half-way: it can only be given up."""
        self.stale = False
        """What it looked at is forgotten, or can be no more: it conflicts."""

    def get(self, path: bytes) -> Node | None:
        """Raises Refused."""
        seen = self._seen.get(path)
        if seen is None:
            if self._most_nodes and len(self._seen) >= self._most_nodes:
                self.failed = True
                raise Refused(ENOSPC)
            seen = self._seen[path] = _Seen(self._tree.get(path))
        return seen.node

    def add(self, path: bytes, value: bytes, permissions: Permissions) -> Node:
        self._change(parent_of(path)).add_child(name_of(path))
        seen = self._seen[path]
        seen.node = Node(value, permissions, 0)
        seen.changed = True
        return seen.node

    def write(self, path: bytes, node: Node, value: bytes) -> None:
        self._change(path).value = value

    def set_permissions(self, path: bytes, node: Node, permissions: Permissions) -> None:
        self._change(path).permissions = permissions

    def remove(self, path: bytes) -> None:
        parent = self.get(parent_of(path))
        if parent is not None and name_of(path) in parent.children:
            self._change(parent_of(path)).remove_child(name_of(path))
        seen = self._seen[path]
        seen.node = None
        seen.changed = True

    def _change(self, path: bytes) -> Node:
        """A node that it has looked at, to be changed. Its generation moves, for whoever lists it part by part."""
        seen = self._seen[path]
        assert seen.node is not None, path
        seen.changed = True
        seen.node.generation += 1
        return seen.node

    def fire(self, path: bytes, exact: bool) -> None:
        """Watches of this node fire at the end, `exact`: not those of nodes above it."""
        seen = self._seen[path]
        seen.exact = exact and (seen.exact or not seen.fires)
        seen.fires = True

    def domain_gone(self, domid: int) -> None:
        """What it took from, or made for, a domain that is gone is nobody's."""
        if any(seen.node is not None and any(entry == domid for entry, _ in seen.node.permissions)
               for seen in self._seen.values()):  # fmt: skip
            self.stale = True

    def conflicts(self) -> bool:
        if self.stale:
            return True
        get = self._tree.get
        for path, seen in self._seen.items():
            now = get(path)
            if (now.generation if now is not None else None) != seen.generation:
                return True
        return False

    def changes(self) -> list[Change]:
        return [
            Change(path, seen.node, seen.fires, seen.exact, seen.old)
            for path, seen in self._seen.items()
            if seen.changed
        ]
