"""What the hypervisor knows of domains and devices, brought into the tree."""

from collections.abc import Iterable
from itertools import groupby

from drivers.store.permissions import NONE, READ, Permissions
from drivers.store.store import Store
from drivers.store.tree import Node
from kernel.abi.store_io import StoreNode

__all__ = ["put"]


def put(store: Store, nodes: Iterable[StoreNode]) -> None:
    """What is so already stays as it is, and nobody is told of it. Raises Refused where there is no room."""
    there = store.nodes()
    wanted = [node for node in nodes if _value_of(there.get(node.path.encode())) != _bytes(node)]
    for permissions, group in groupby(wanted, _permissions):
        store.put({node.path.encode(): _bytes(node) for node in group}, permissions)


def _value_of(node: Node | None) -> bytes | None:
    return None if node is None else node.value


def _bytes(node: StoreNode) -> bytes | None:
    return None if node.value is None else node.value.encode()


def _permissions(node: StoreNode) -> Permissions:
    readers = () if node.reader is None else ((node.reader, READ),)
    return ((node.owner, NONE), *readers)
