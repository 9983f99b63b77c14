"""Ranges of an image that are given back, or made to read as zeros, with what the file system or device beneath can.

A block device refuses a range that is no multiple of its own sectors (EINVAL), and one of which something waits in the
page cache (EBUSY), since the hypervisor has claimed the device and not we (Linux, `truncate_bdev_range`).
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct

__all__ = ["discard", "write_zeroes"]

_PUNCH_HOLE, _ZERO_RANGE = 0x01 | 0x02, 0x01 | 0x10
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE, both with FALLOC_FL_KEEP_SIZE (`linux/falloc.h`)."""

_BLKDISCARD = 0x1277
_RANGE = struct.Struct("<QQ")
"""`linux/fs.h`, and what it takes: offset and length in bytes."""

_NOT_THIS = frozenset({errno.EINVAL, errno.EBUSY})
"""A block device cannot with this range."""
_CANNOT = _NOT_THIS | {errno.EOPNOTSUPP, errno.ENOSYS}

_ZEROS = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def discard(image: int, offset: int, length: int) -> None:
    """Give the range back to the file system or device. A range that a device does not take is left as it is.

    Raises OSError: EOPNOTSUPP where nothing can be given back.
    """
    if not length:
        return
    if not stat.S_ISBLK(os.fstat(image).st_mode):
        _fallocate(image, _PUNCH_HOLE, offset, length)
        return
    try:
        fcntl.ioctl(image, _BLKDISCARD, _RANGE.pack(offset, length))
    except OSError as error:
        if error.errno not in _NOT_THIS:
            raise


def write_zeroes(image: int, offset: int, length: int, *, unmap: bool) -> None:
    """Make the range read as zeros: with `unmap` its space is given back, if possible; without, it stays allocated.

    Where neither can be had without sending zeros they are written. Raises OSError.
    """
    if not length:
        return
    for mode in (_PUNCH_HOLE, _ZERO_RANGE) if unmap else (_ZERO_RANGE,):
        try:
            _fallocate(image, mode, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        else:
            return
    end = offset + length
    while offset < end:
        offset += os.pwrite(image, _ZEROS[: end - offset], offset)


def _fallocate(image: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(image, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, f"fallocate: {os.strerror(number)}")
