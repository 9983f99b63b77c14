"""One run is one folder: logs, consoles, the admin socket. Locked while its hypervisor lives."""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.run import ADMIN_SOCKET, LATEST, STORE_SOCKET, new_run

__all__ = ["RunFolder", "RunFolderError", "open_run_folder"]


class RunFolderError(Exception):
    """The run folder cannot be used: one line with the mend."""


@dataclass(frozen=True)
class RunFolder:
    """An open, locked run folder. `descriptor` names the folder where its path would be too long for a socket's
    name."""

    path: Path
    descriptor: int
    lock: int

    @property
    def name(self) -> str:
        return self.path.name

    def close(self) -> None:
        """Remove what only a living hypervisor needs, and unlock."""
        (self.path / ADMIN_SOCKET).unlink(missing_ok=True)
        shutil.rmtree((self.path / STORE_SOCKET).parent, ignore_errors=True)
        shutil.rmtree(self.path / "tmp", ignore_errors=True)
        os.close(self.descriptor)
        os.close(self.lock)


def open_run_folder(path: Path | None) -> RunFolder:
    """Make (or take up) a run folder and lock it. Raises RunFolderError, naming the pid that holds it."""
    folder = path.absolute() if path else new_run()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise RunFolderError(f"{folder}: {error.strerror}: give a folder that can be written with --run") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode().strip()
        os.close(lock)
        raise RunFolderError(
            f"{folder}: hypervisor {holder} runs here: end it, or give another folder with --run"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _point_latest_at(folder)
    return RunFolder(folder, descriptor, lock)


def _point_latest_at(folder: Path) -> None:
    """Let `latest` beside the run point to it, atomically, so that two hypervisors may start at once."""
    temporary = folder.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(folder.parent / LATEST)
