"""Images behind vbds, files or block devices: checked, locked as QEMU locks them, opened once for each incarnation that
serves them."""

import contextlib
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

BLKGETSIZE64, BLKROGET = 0x8008_1272, 0x125E
"""`linux/fs.h`: a block device's size in bytes, as u64; whether it can only be read, as int."""


@dataclass(slots=True)
class Image:
    """One image that a vbd uses. `sectors` of 512 bytes; a last part sector is not reached.

    Spare descriptors are opened long before they are handed out: a write-back error is told once to each open file
    description that was there, so a flush that is posted again to a successor sees it too, though a predecessor, or a
    stranger who called fsync(2), was told it already.

    A block device that is written is claimed besides (O_EXCL), so that this host cannot mount it meanwhile. One that is
    only read is looked at: other readers may want it too.

    `backing` is what it stands on, where it is no raw image.
    """

    path: Path
    read_only: bool
    sectors: int
    _spares: deque[int]
    _claim: int = -1
    backing: "Image | None" = None

    @property
    def is_file(self) -> bool:
        """And no block device."""
        return stat.S_ISREG(os.fstat(self._spares[0]).st_mode)

    def open_to_look(self) -> int:
        """A descriptor that can only be read. The caller closes it."""
        return os.open(f"/proc/self/fd/{self._spares[0]}", os.O_RDONLY | os.O_CLOEXEC)

    def take(self) -> int:
        """A descriptor with an open file description of its own, for one incarnation. The caller closes it."""
        self._spares.append(_open_again(self._spares[0], self.read_only))
        return self._spares.popleft()

    def close(self) -> None:
        """Give the image up, as far as the hypervisor holds it."""
        while self._spares:
            os.close(self._spares.pop())
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1
        if self.backing is not None:
            self.backing.close()


def open_image(path: Path, *, read_only: bool) -> Image:
    """Open, check and lock an image. Refuses, with the mend: ENOENT, EINVAL (no disk), EPERM (no access), EBUSY
    (in use)."""
    spares = deque([_open_locked(path, read_only)])
    image = Image(path, read_only, 0, spares)
    try:
        image.sectors = _sectors(path, spares[0])
        _check_nobody_objects(path, spares[0], read_only)
        image._claim = _claim(path, spares[0], read_only)
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
        raise Refused(Status.EINVAL, f"image {path} is a folder: name an image file or a block device") from error
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
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
    elif stat.S_ISBLK(status.st_mode):
        size = int.from_bytes(fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)), "little")
    else:
        raise Refused(
            Status.EINVAL, f"image {path} is neither a file nor a block device: name a raw image file or a block device"
        )
    if size < SECTOR_BYTES:
        raise Refused(
            Status.EINVAL, f"image {path} has {size} bytes: a disk needs at least one sector of {SECTOR_BYTES}"
        )
    return size // SECTOR_BYTES


def _claim(path: Path, descriptor: int, read_only: bool) -> int:
    """The claim on a block device; -1 where there is none to keep. Refuses: EBUSY claimed by another, EPERM."""
    device = os.fstat(descriptor)
    if not stat.S_ISBLK(device.st_mode):
        return -1
    if not read_only and any(fcntl.ioctl(descriptor, BLKROGET, bytes(4))):
        raise Refused(Status.EPERM, f'image {path} is a block device that can only be read: give access = "ro"')
    try:
        claim = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(
            Status.EBUSY,
            f"image {path} is a block device that is {_user_of(device.st_rdev)}: unmount it or end what uses it",
        ) from error
    if read_only:
        os.close(claim)
        return -1
    return claim


def _user_of(device: int) -> str:
    """Who has claimed a block device, as far as it can be told (proc_pid_mountinfo(5), sysfs)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            words = line.split(" ")
            if words[2] == number:
                return f"mounted at {words[4]}"
        holders = sorted(os.listdir(f"/sys/dev/block/{number}/holders"))
        if holders:
            return f"part of {', '.join(holders)}"
    return "in use by another"


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
