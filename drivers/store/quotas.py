"""How much a domain may have, and how much all may have together."""

from dataclasses import dataclass

from drivers.store.errors import ENOSPC, Refused
from kernel.abi.io.xs_wire import REL_PATH_MAX

__all__ = ["Quotas", "Room"]


@dataclass(slots=True)
class Quotas:
    """For each domain but Dom0, which has none. The defaults are Xen's (`xenstored --help`, 4.17)."""

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    outstanding: int = 20
    """Requests of one connection that somebody has not yet heard of: past it nothing more is read from it."""
    transaction_nodes: int = 1024
    """Nodes that one transaction has looked at."""
    node_size: int = 2048
    """Header, permissions, value and children's names of a node, as the C xenstored stores them."""
    path: int = REL_PATH_MAX
    permissions: int = 5


@dataclass(slots=True)
class Room:
    """Bytes that a part of the state takes in a snapshot, at most, and may take."""

    limit: int
    used: int = 0

    def need(self, more: int) -> None:
        """Raises Refused where there is no room for so much more. What does not grow is never refused."""
        if more > 0 and self.used + more > self.limit:
            raise Refused(ENOSPC)
