"""How a call ended, and who is to blame when a peer breaks the rules."""

import enum
import errno

from kernel.abi.ids import Peer

__all__ = ["DomainFault", "KernelBug", "Refused", "Status"]


class Status(enum.IntEnum):
    """Answer to a hypercall: 0, or an errno of Linux, as Xen answers with negated ones."""

    OK = 0
    EPERM = errno.EPERM
    ENOENT = errno.ENOENT
    E2BIG = errno.E2BIG
    EIO = errno.EIO
    EAGAIN = errno.EAGAIN
    ENOMEM = errno.ENOMEM
    EACCES = errno.EACCES
    EBUSY = errno.EBUSY
    EEXIST = errno.EEXIST
    EISDIR = errno.EISDIR
    EINVAL = errno.EINVAL
    ENOSPC = errno.ENOSPC
    EROFS = errno.EROFS
    ENOSYS = errno.ENOSYS
    ENOTEMPTY = errno.ENOTEMPTY
    EISCONN = errno.EISCONN
    ESTALE = errno.ESTALE
    ETIMEDOUT = errno.ETIMEDOUT
    EHOSTDOWN = errno.EHOSTDOWN


class Refused(Exception):
    """A peer asked for what it may not have or what cannot be. It gets the status and one line; life goes on."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class DomainFault(Exception):
    """A peer broke the ABI. It is ended, logged with the evidence, and restarted by policy."""

    def __init__(self, peer: Peer | None, what: str, **evidence: object) -> None:
        super().__init__(what)
        self.peer = peer
        self.what = what
        self.evidence = evidence


class KernelBug(Exception):
    """We broke our own invariant. The process ends loudly; its supervisor decides."""
