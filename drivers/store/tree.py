"""The nodes that everybody sees, and how many of them each domain owns."""

from collections.abc import Iterator
from typing import Protocol

from drivers.store.paths import child_of, name_of, parent_of
from drivers.store.permissions import Permissions
from drivers.store.quotas import Room

__all__ = ["Node", "Tree", "View", "subtree"]

NODE_BYTES, PERMISSION_BYTES = 40, 16
"""What a node and a permission take in a snapshot beside the name and the value, at most."""


class Node:
    """A value, permissions, and the names of its children in the order of their making."""

    __slots__ = ("children", "generation", "names_bytes", "permissions", "value")

    def __init__(self, value: bytes, permissions: Permissions, generation: int) -> None:
        self.value = value
        self.permissions = permissions
        self.generation = generation
        """Changes with every change of the node, its list of children included."""
        self.children: dict[bytes, None] = {}
        self.names_bytes = 0
        """What the children's names take, each with its NUL."""

    def copy(self) -> "Node":
        node = Node(self.value, self.permissions, self.generation)
        node.children = self.children.copy()
        node.names_bytes = self.names_bytes
        return node

    def add_child(self, name: bytes) -> None:
        self.children[name] = None
        self.names_bytes += len(name) + 1

    def remove_child(self, name: bytes) -> None:
        del self.children[name]
        self.names_bytes -= len(name) + 1

    def weight(self) -> int:
        """Bytes in a snapshot at most, without its name."""
        return NODE_BYTES + len(self.value) + PERMISSION_BYTES * len(self.permissions)


class View(Protocol):
    """What a request works on: the tree itself, or a transaction's picture of it.

    Whoever changes something has seen by `get` that the nodes are there, or not, as they must be.
    """

    def get(self, path: bytes) -> Node | None: ...
    def add(self, path: bytes, value: bytes, permissions: Permissions) -> Node: ...
    def write(self, path: bytes, node: Node, value: bytes) -> None: ...
    def set_permissions(self, path: bytes, node: Node, permissions: Permissions) -> None: ...
    def remove(self, path: bytes) -> None:
        """A node without children."""


def subtree(view: View, root: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """All nodes from `root` on, children before parents; the caller may remove each as it comes."""
    stack = [(root, node, list(reversed(node.children)))]
    while stack:
        path, node, names = stack[-1]
        if names:
            below = child_of(path, names.pop())
            child = view.get(below)
            if child is not None:  # always, but for a transaction's torn picture
                stack.append((below, child, list(reversed(child.children))))
        else:
            stack.pop()
            yield path, node


class Tree:
    """A `View`. `room` is told of every change; whether there is any is the caller's to ask before."""

    def __init__(self, room: Room) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.get = self.nodes.get
        self.generation = 0
        self.owned: dict[int, int] = {}
        self._room = room

    def step(self) -> int:
        """A generation that nothing has yet."""
        self.generation += 1
        return self.generation

    def place(self, path: bytes, node: Node | None) -> None:
        """Put a whole node there, or take it away. The parent's list of children is not looked at."""
        old = self.nodes.pop(path, None) if node is None else self.nodes.get(path)
        if old is not None:
            self._count(old.permissions[0][0], -1)
            self._room.used -= len(path) + old.weight()
        if node is not None:
            node.generation = self.step()
            self.nodes[path] = node
            self._count(node.permissions[0][0], 1)
            self._room.used += len(path) + node.weight()

    def add(self, path: bytes, value: bytes, permissions: Permissions) -> Node:
        parent = self.nodes[parent_of(path)]
        parent.add_child(name_of(path))
        parent.generation = self.step()
        node = Node(value, permissions, 0)
        self.place(path, node)
        return node

    def write(self, path: bytes, node: Node, value: bytes) -> None:
        self._room.used += len(value) - len(node.value)
        node.value = value
        self.generation = node.generation = self.generation + 1

    def set_permissions(self, path: bytes, node: Node, permissions: Permissions) -> None:
        self._count(node.permissions[0][0], -1)
        self._room.used -= node.weight()
        node.permissions = permissions
        self._room.used += node.weight()
        self._count(permissions[0][0], 1)
        node.generation = self.step()

    def remove(self, path: bytes) -> None:
        parent = self.nodes[parent_of(path)]
        parent.remove_child(name_of(path))
        parent.generation = self.step()
        self.place(path, None)

    def _count(self, domid: int, more: int) -> None:
        count = self.owned.get(domid, 0) + more
        if count:
            self.owned[domid] = count
        else:
            del self.owned[domid]
