"""Where set-up keeps what it brought for this user: what the hypervisor and the toolstack look for.

    $TRIOVISOR_CACHE, else ~/.cache/triovisor
      guest/initramfs.cpio       a link to initramfs-<content hash>.cpio
      guest/lpj                  this host's loops per jiffy, one number
      guest/programs-<hash>      the guest's programs, compiled from sources of that hash
      packages/current           a link to the folder of system packages that were unpacked for an ordinary user:
        bin/NAME                   how a program of them is run
        root/                      their files, as they would lie beneath /
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["cache_root", "find_file", "find_program", "program_path", "unpacked_packages"]

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
"""Searched after PATH: an ordinary user's PATH on Debian has no sbin, where mke2fs lives."""


def cache_root() -> Path:
    """The folder of all of it, which may not exist."""
    root = os.environ.get("TRIOVISOR_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "triovisor"


def unpacked_packages() -> Path:
    """The folder with `bin` and `root`, which exists only where set-up had to do without root."""
    return cache_root() / "packages" / "current"


def program_path() -> str:
    """Where programs are searched for, as PATH has it: there, then in the system, then in what was unpacked."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM_FOLDERS, str(unpacked_packages() / "bin")))


def find_program(name: str, suits: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """The first program that suits."""
    found = (shutil.which(name, path=folder) for folder in program_path().split(os.pathsep))
    return next((path for each in found if each and suits(path := Path(each))), None)


def find_file(path: str) -> Path | None:
    """A file or folder of a system package, by the path that it has in the system: there, or where it was unpacked."""
    unpacked = unpacked_packages() / "root" / path.lstrip("/")
    return next((found for found in (Path(path), unpacked) if found.exists()), None)
