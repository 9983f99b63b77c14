"""What an image's errno is to the frontend."""

import errno

from kernel.abi.io.blkif import RspStatus

__all__ = ["status_of"]

_STATUSES = {
    errno.ENOSPC: RspStatus.NO_SPACE,
    errno.EDQUOT: RspStatus.NO_SPACE,
    errno.EROFS: RspStatus.READ_ONLY,
    errno.EBADF: RspStatus.READ_ONLY,
    errno.EOPNOTSUPP: RspStatus.UNSUPPORTED,
}


def status_of(error: OSError) -> int:
    """The response for a failed system call on the image. The guest hears of it, and the driver lives."""
    return _STATUSES.get(error.errno or 0, RspStatus.IO_ERROR)
