"""Ranges of an image that are given back, or made to read as zeros, with what the file system beneath can."""

import ctypes
import errno
import os

__all__ = ["discard", "write_zeroes"]

_PUNCH_HOLE, _ZERO_RANGE = 0x01 | 0x02, 0x01 | 0x10
"""FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE, both with FALLOC_FL_KEEP_SIZE (`linux/falloc.h`)."""

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

_ZEROS = bytes(1 << 20)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def discard(image: int, offset: int, length: int) -> None:
    """Give the range back to the file system. Raises OSError: EOPNOTSUPP where that is not possible."""
    if length:
        _fallocate(image, _PUNCH_HOLE, offset, length)


def write_zeroes(image: int, offset: int, length: int, *, unmap: bool) -> None:
    """Make the range read as zeros: with `unmap` its space is given back, if possible; without, it stays allocated.

    Where the file system can do neither by itself the zeros are written. Raises OSError.
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
