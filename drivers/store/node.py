"""A node of the tree."""

from drivers.store.permissions import Permissions

__all__ = ["HEADER_BYTES", "PERMISSION_BYTES", "Node"]

HEADER_BYTES, PERMISSION_BYTES = 24, 8
"""What Xen's store takes for a node besides its value and the names of its children."""


class Node:
    """One node. `generation` is another one whenever it, or the list of its children, has changed."""

    __slots__ = ("children", "generation", "permissions", "value")

    def __init__(self, value: bytes, permissions: Permissions, children: dict[bytes, None], generation: int) -> None:
        self.value = value
        self.permissions = permissions
        self.children = children
        self.generation = generation

    @property
    def size(self) -> int:
        """What counts towards its quota, as Xen's store keeps it."""
        own = HEADER_BYTES + PERMISSION_BYTES * len(self.permissions) + len(self.value)
        return own + sum(len(name) + 1 for name in self.children)

    def copy(self) -> "Node":
        """Another one that is the same."""
        return Node(self.value, self.permissions, dict(self.children), self.generation)
