"""Raw disk images: sparse files, with an ext4 file system where one is wanted."""

import os
import stat
import subprocess
from pathlib import Path

from kernel.abi.cache import find_program
from triovisor.provision.files import SetupError

__all__ = ["check_image", "create_ext4", "create_image"]

SECTOR = 512
MKE2FS_OPTIONS = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
"""No lazy initialisation: the guest would go on writing in the background, for minutes after its first mount."""


def create_image(path: Path, size_bytes: int) -> Path:
    """A sparse file of zeros. Raises SetupError where `path` exists or the size is no multiple of a sector."""
    if size_bytes < SECTOR or size_bytes % SECTOR:
        raise SetupError(f"{path}: {size_bytes} bytes is no size for a disk; give a multiple of {SECTOR}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    return path


def create_ext4(path: Path, size_mib: int, contents: Path | None = None) -> Path:
    """An image with one ext4 file system over all of it, filled with the folder `contents`. Whole, or not there at all.

    Raises SetupError: see `create_image`; also without mke2fs, or with its first complaint where it fails.
    """
    mke2fs = find_program("mke2fs")
    if mke2fs is None:
        raise SetupError("no mke2fs; run: apt-get install e2fsprogs")
    if contents is not None and not contents.is_dir():
        raise SetupError(f"{contents}: is no folder; its content was to fill {path}")
    create_image(path, size_mib << 20)
    source = [] if contents is None else ["-d", os.fspath(contents)]
    argv = [os.fspath(mke2fs), "-q", "-F", "-t", "ext4", "-E", MKE2FS_OPTIONS, *source, os.fspath(path)]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        path.unlink()
        raise SetupError(f"{path}: mke2fs: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return path


def check_image(path: Path) -> int:
    """The image's size in bytes. Raises SetupError for what a disk driver could not serve."""
    try:
        status = path.stat()
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}; create it with: truncate -s 64M {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SetupError(f"{path}: is no regular file, so no raw image")
    if status.st_size < SECTOR:
        raise SetupError(f"{path}: {status.st_size} bytes, a disk has at least one sector of {SECTOR}")
    if status.st_size % SECTOR:
        raise SetupError(f"{path}: {status.st_size} bytes is no multiple of a sector of {SECTOR}")
    return status.st_size
