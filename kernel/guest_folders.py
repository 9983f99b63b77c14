"""Folders for guests of the reduced jail, which has no mounts: where its sockets and its memory's file are made.

    /dev/shm/triovisor.XXXX/       one for each hypervisor that needs any, locked while it lives
    /dev/shm/triovisor.XXXX/7/     one for each incarnation of a guest; it alone may write there

A short path, since a socket's name holds 107 bytes; on tmpfs, since the guest's memory is a file there.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["GuestFolders"]

PARENT = Path("/dev/shm")
PREFIX = "triovisor."

PASSABLE = 0o711
"""As root each domain has a uid of its own, and must get through to its folder."""


class GuestFolders:
    """Those of one hypervisor. Until the first is made there is nothing on the host."""

    def __init__(self) -> None:
        self._root: Path | None = None
        self._lock = -1
        self._made = 0

    def make(self) -> Path:
        """A folder for one incarnation. Raises OSError."""
        if self._root is None:
            remove_abandoned()
            self._root, self._lock = _make_root()
        self._made += 1
        folder = self._root / str(self._made)
        folder.mkdir(0o700)
        return folder

    def remove(self, folder: Path) -> None:
        """At the end of its incarnation, whose last process may still be dying: what that leaves goes with `close`."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove them all."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            os.close(self._lock)
            self._root = None


def remove_abandoned() -> None:
    """Remove what hypervisors of this user left that were killed: nobody holds its lock."""
    for root in PARENT.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # a stranger's, a living one's, or just removed by another
            lock = _open_folder(root)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(lock)


def _make_root() -> tuple[Path, int]:
    """Another hypervisor that starts may take it for abandoned before it is locked, and then there is none."""
    while True:
        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
        with contextlib.suppress(FileNotFoundError):
            lock = _open_folder(root)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                os.chmod(root, PASSABLE)
                return root, lock
            os.close(lock)


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
