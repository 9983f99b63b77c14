"""A transaction: nodes as one client alone has changed them, and what it has seen of those that others may change."""

from collections.abc import Iterator

from drivers.store.node import Node
from drivers.store.paths import ROOT, name_of, parent_of
from drivers.store.permissions import Permissions

__all__ = ["Transaction"]


class Transaction:
    """Over `nodes`, which others change meanwhile. It may be committed as long as all that it has seen is as it was."""

    def __init__(self, nodes: dict[bytes, Node]) -> None:
        self._nodes = nodes
        self._own: dict[bytes, Node | None] = {}
        self.seen: dict[bytes, int] = {}
        """Generations, 0 for what was not there."""
        self.failed = False
        """It was refused a node too large, which it may not have noticed."""
        self.fired: dict[bytes, bool] = {}
        """What changed, in order; whether that is for watches of that very path alone."""

    def get(self, path: bytes) -> Node | None:
        """As it was when this first saw it, or has made it."""
        if path in self._own:
            return self._own[path]
        node = self._nodes.get(path)
        self.seen[path] = node.generation if node is not None else 0
        own = self._own[path] = node.copy() if node is not None else None
        return own

    def node(self, path: bytes, value: bytes, permissions: Permissions) -> None:
        """It is so now, for this transaction."""
        node = self.get(path)
        if node is None:
            self._there(parent_of(path)).children[name_of(path)] = None
            self._own[path] = Node(value, permissions, {}, 0)
        else:
            node.value, node.permissions = value, permissions

    def remove(self, path: bytes) -> None:
        """With all below it."""
        for each in (*self.below(path), path):
            self.get(each)
            self._own[each] = None
        del self._there(parent_of(path)).children[name_of(path)]

    def below(self, path: bytes) -> Iterator[bytes]:
        """All nodes below one, children before their parents."""
        for name in self._there(path).children:
            child = (path if path != ROOT else b"") + b"/" + name
            yield from self.below(child)
            yield child

    def conflicts(self) -> bool:
        """Whether somebody else has changed what this has seen."""
        return any(
            (node.generation if (node := self._nodes.get(path)) is not None else 0) != generation
            for path, generation in self.seen.items()
        )

    def removed(self) -> list[bytes]:
        """What is there and should not be."""
        return [path for path, node in self._own.items() if node is None and path in self._nodes]

    def changed(self) -> Iterator[tuple[bytes, Node]]:
        """What is not so yet, parents first."""
        own = [(path, node) for path, node in self._own.items() if node is not None]
        for path, node in sorted(own, key=lambda each: len(each[0])):
            there = self._nodes.get(path)
            if there is None or there.value != node.value or there.permissions != node.permissions:
                yield path, node

    def _there(self, path: bytes) -> Node:
        node = self.get(path)
        assert node is not None
        return node
