"""Block devices of a test's own, and file systems that run out of space beneath an image: for errors that are the
disk's own, not a stand-in's."""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.not_possible import not_possible
from tests.promises.events import DEADLINE_S

__all__ = ["FreezableDisk", "fill", "freezable_disk", "full_loop_device", "loop_device", "mounted", "tmpfs"]

MIB = 1 << 20


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _unmount(folder: Path) -> None:
    """At once, or as soon as the last who uses it is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            _run("umount", folder)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _need_root(why: str) -> None:
    if os.geteuid() != 0:
        not_possible(f"{why} needs root")


@contextlib.contextmanager
def tmpfs(folder: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    _need_root("a file system of a test's own")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", folder)
    except OSError as error:
        not_possible(f"mounting a tmpfs: {error.strerror}")
    try:
        yield folder
    finally:
        _unmount(folder)


def fill(folder: Path) -> Path:
    """Take all the space that is left; unlink the file that is returned to give it back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (MIB, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return ballast


@contextlib.contextmanager
def full_loop_device(folder: Path, image_mib: int) -> Iterator[Path]:
    """An image on an ext4 file system on a loop device whose own file lies on a full tmpfs.

    What is written to the image goes into the page cache; writing it back fails with EIO. The file system has no
    journal, so that this error does not make it read-only.
    """
    with tmpfs(folder / "small", 2 * image_mib) as small:
        backing = small / "backing"
        with backing.open("wb") as file:
            file.truncate(4 * image_mib * MIB)
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=0", backing)
        with loop_device(backing) as loop, mounted(loop, folder / "disk") as disk:
            image = disk / "image"
            with image.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, image_mib * MIB)
            os.sync()
            fill(small)
            yield image
            (small / "ballast").unlink()


@contextlib.contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    """A block device that is that file."""
    _need_root("a loop device")
    try:
        loop = _run("losetup", "--find", "--show", *options, backing)
    except OSError as error:
        not_possible(f"a loop device: {error.strerror}")
    try:
        yield Path(loop)
    finally:
        _run("losetup", "--detach", loop)


@contextlib.contextmanager
def mounted(device: Path, folder: Path, options: str = "rw") -> Iterator[Path]:
    """The ext4 file system that is on a block device, or in a file with the option `loop`."""
    folder.mkdir()
    try:
        _run("mount", "-t", "ext4", "-o", options, device, folder)
    except OSError as error:
        not_possible(f"mounting ext4 from a loop device: {error.strerror}")
    try:
        yield folder
    finally:
        _unmount(folder)


@dataclass(frozen=True, slots=True)
class FreezableDisk:
    """An image on an ext4 file system of its own. Whoever writes to a frozen file system is in uninterruptible sleep
    until it is thawed (fsfreeze(8))."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "image"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While the block runs."""
        _run("fsfreeze", "-f", self.folder)
        try:
            yield
        finally:
            _run("fsfreeze", "-u", self.folder)


@contextlib.contextmanager
def freezable_disk(folder: Path, image_mib: int) -> Iterator[FreezableDisk]:
    """A disk whose driver can be made to sleep."""
    _need_root("a file system that is frozen")
    backing = folder / "backing"
    with backing.open("wb") as file:
        file.truncate((image_mib + 16) * MIB)
    _run("mke2fs", "-q", "-F", "-t", "ext4", backing)
    with mounted(backing, folder / "mounted", "loop") as filesystem:
        disk = FreezableDisk(filesystem)
        disk.image.write_bytes(bytes(image_mib * MIB))
        yield disk
