"""Images behind vbds: checked, locked as QEMU locks them, opened once for each incarnation that serves them."""

import fcntl
import os
import stat
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.status import Refused, Status

__all__ = ["SECTOR_BYTES", "Image", "open_image"]

SECTOR_BYTES = 512

PERMITTED_BASE, UNSHARED_BASE = 100, 200
"""QEMU's lock bytes (block/file-posix.c, RAW_LOCK_*_BASE): a shared lock at 100 + n says "I use n", at 200 + n
"nobody else may"."""

CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3
"""The n of QEMU's BLK_PERM_* bits that a disk needs."""

SPARES = 4
"""Descriptors kept in advance, so many deaths in a row may lie between an error of write-back and the flush that tells
the guest: one more than the restart policy follows at once by default."""

F_OFD_GETLK, F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of x86-64 Linux: type, whence, start, length, pid."""


@dataclass(slots=True)
class Image:
    """One image that a vbd uses. `sectors` of 512 bytes; a last part sector is not reached.

    Spare descriptors are opened long before they are handed out: a write-back error is told once to each open file
    description that was there, so a flush that is posted again to a successor sees it too, though a predecessor, or a
    stranger who called fsync(2), was told it already.
    """

    path: Path
    read_only: bool
    sectors: int
    _spares: deque[int]

    def take(self) -> int:
        """A descriptor with an open file description of its own, for one incarnation. The caller closes it."""
        self._spares.append(_open_again(self._spares[0], self.read_only))
        return self._spares.popleft()

    def close(self) -> None:
        """Give the image up, as far as the hypervisor holds it."""
        while self._spares:
            os.close(self._spares.pop())


def open_image(path: Path, *, read_only: bool) -> Image:
    """Open, check and lock an image. Refuses, with the mend: ENOENT, EINVAL (no disk), EPERM (no access), EBUSY
    (in use)."""
    spares = deque([_open_locked(path, read_only)])
    image = Image(path, read_only, 0, spares)
    try:
        image.sectors = _sectors(path, spares[0])
        _check_nobody_objects(path, spares[0], read_only)
        while len(spares) < SPARES:
            spares.append(_open_again(spares[0], read_only))
    except Refused:
        image.close()
        raise
    return image


def _open_again(descriptor: int, read_only: bool) -> int:
    """The same file, whatever its path means by now."""
    return _open_locked(Path(f"/proc/self/fd/{descriptor}"), read_only)


def _open_locked(path: Path, read_only: bool) -> int:
    try:
        descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise Refused(
            Status.ENOENT, f"image {path} does not exist: make it with qemu-img create, or mend the path"
        ) from error
    except IsADirectoryError as error:
        raise Refused(Status.EINVAL, f"image {path} is a folder: name an image file") from error
    except OSError as error:
        raise Refused(Status.EPERM, f"image {path}: {error.strerror}: let the hypervisor's user open it") from error
    try:
        for byte in _used(read_only) + _unshared():
            fcntl.fcntl(descriptor, F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        os.close(descriptor)
        raise Refused(
            Status.EINVAL, f"image {path} cannot be locked ({error.strerror}): use a file system that locks"
        ) from error
    return descriptor


def _sectors(path: Path, descriptor: int) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Status.EINVAL, f"image {path} is no regular file: name a raw image file")
    if status.st_size < SECTOR_BYTES:
        raise Refused(
            Status.EINVAL,
            f"image {path} has {status.st_size} bytes: a disk needs at least one sector of {SECTOR_BYTES}",
        )
    return status.st_size // SECTOR_BYTES


def _check_nobody_objects(path: Path, descriptor: int, read_only: bool) -> None:
    """Look, after locking, whether another's locks and ours exclude each other. Ours stand by then, so two
    cannot both pass."""
    conflicts = [UNSHARED_BASE + byte - PERMITTED_BASE for byte in _used(read_only)]
    conflicts += [PERMITTED_BASE + byte - UNSHARED_BASE for byte in _unshared()]
    for byte in conflicts:
        answer = fcntl.fcntl(descriptor, F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            raise Refused(
                Status.EBUSY, f"image {path} is in use by another: destroy the guest or end the program that holds it"
            )


def _used(read_only: bool) -> list[int]:
    return [PERMITTED_BASE + bit for bit in ([CONSISTENT_READ] if read_only else [CONSISTENT_READ, WRITE])]


def _unshared() -> list[int]:
    """Nobody else may write or resize while we read or write."""
    return [UNSHARED_BASE + WRITE, UNSHARED_BASE + RESIZE]
