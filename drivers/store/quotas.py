"""What one domain may have of the store. Dom0 may have all."""

from msgspec import Struct

__all__ = ["XEN_DEFAULTS", "Quotas"]


class Quotas(Struct, frozen=True, forbid_unknown_fields=True):
    """Xen's defaults (`xenstored --help`, `tools/xenstore/xenstored_core.c` of Xen 4.17)."""

    nodes: int = 1000
    node_bytes: int = 2048
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
    """That one transaction has seen."""
    permissions: int = 5
    """Of one node."""
    events: int = 1024
    """Undelivered, of one client. What fires beyond that is told as a change at the watched path itself, once."""


XEN_DEFAULTS = Quotas()
