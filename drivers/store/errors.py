"""How xenstore refuses a request."""

from typing import Final

from kernel.abi.io.xs_wire import ErrorName

__all__ = ["EAGAIN", "E2BIG", "EACCES", "EBUSY", "EEXIST", "EINVAL", "EIO", "ENOENT", "ENOMEM", "ENOSPC", "ENOSYS"]
__all__ += ["EPERM", "Refused"]

EINVAL: Final = ErrorName.EINVAL
EACCES: Final = ErrorName.EACCES
EEXIST: Final = ErrorName.EEXIST
ENOENT: Final = ErrorName.ENOENT
ENOMEM: Final = ErrorName.ENOMEM
ENOSPC: Final = ErrorName.ENOSPC
EIO: Final = ErrorName.EIO
ENOSYS: Final = ErrorName.ENOSYS
EBUSY: Final = ErrorName.EBUSY
EAGAIN: Final = ErrorName.EAGAIN
E2BIG: Final = ErrorName.E2BIG
EPERM: Final = ErrorName.EPERM


class Refused(Exception):
    """The client may not have what it asked for, or it cannot be: nothing has changed."""

    def __init__(self, error: ErrorName) -> None:
        super().__init__(str(error))
        self.body = error.encode() + b"\0"
        """The body of the reply."""
