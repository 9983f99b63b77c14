"""Where what was provisioned lies.

    $TRIOVISOR_CACHE, else ~/.cache/triovisor
      guest/initramfs.cpio       a link to initramfs-<content hash>.cpio
      guest/lpj                  this host's loops per jiffy, one number
      guest/programs-<hash>      the guest's programs, compiled from sources of that hash
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KERNEL", "GuestFiles", "SetupError", "find_program", "guest_files", "guest_folder", "publish"]

KERNEL = "linux.uml"
SETUP = "python -m triovisor.provision"
SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
"""Searched after PATH: an ordinary user's PATH on Debian has no sbin, where mke2fs lives."""


class SetupError(Exception):
    """The host or its user is to blame. One line: what is wrong and what mends it."""


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What a para-virtualised guest is booted from. `lpj`: None where it was not measured, and each boot is slower."""

    kernel: Path
    initrd: Path
    lpj: int | None


def guest_folder() -> Path:
    """The cache for guests, made where it is not there."""
    root = os.environ.get("TRIOVISOR_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "triovisor") / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_program(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")
    return Path(found) if found else None


def guest_files() -> GuestFiles:
    """What set-up left. Raises SetupError where it has not run."""
    kernel = find_program(KERNEL)
    initrd = guest_folder() / "initramfs.cpio"
    if kernel is None or not initrd.exists():
        raise SetupError(f"{initrd if kernel else KERNEL} is missing; run: {SETUP}")
    return GuestFiles(kernel, initrd.resolve(), read_lpj())


def read_lpj() -> int | None:
    """The measured loops per jiffy, None where there is no measurement that can be read."""
    try:
        return int((guest_folder() / "lpj").read_text())
    except (FileNotFoundError, ValueError):
        return None


def publish(path: Path, content: bytes, permissions: int = 0o644) -> None:
    """Write a file at once and whole: a reader, or a second set-up at the same time, never sees half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), permissions)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
