"""What was provisioned, and how a file gets into the cache and out of it again; `kernel.abi.cache` says where."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.cache import cache_root, find_program

__all__ = [
    "KERNEL", "GuestFiles", "SetupError", "exit_status", "guest_files", "guest_folder", "is_static", "point_link",
    "prune", "publish",
]

KERNEL = "linux.uml"
SETUP = "python -m triovisor.provision"

INTERRUPTED = 130
"""As a shell has it: 128 and SIGINT."""

MAX_IDLE_S = 7 * 24 * 3600.0
"""What no set-up has wanted for so long is nobody's: another checkout's is wanted whenever that is set up."""


class SetupError(Exception):
    """The host or its user is to blame. One line: what is wrong and what mends it."""


def exit_status(name: str, act: Callable[[], None]) -> int:
    """Do it, and say how the program `name` is to end: 0, or with one line on stderr 1, or 130 for Ctrl-C."""
    try:
        act()
    except SetupError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the next one goes on where this was", file=sys.stderr)
        return INTERRUPTED
    return 0


def is_static(program: Path) -> bool:
    """Whether it needs no loader, and so runs in a guest that has none."""
    with program.open("rb") as file:
        return b"/ld-linux" not in file.read(4096)


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What a para-virtualised guest is booted from. `lpj`: None where it was not measured, and each boot is slower."""

    kernel: Path
    initrd: Path
    lpj: int | None


def guest_folder() -> Path:
    """The cache for guests, made where it is not there."""
    folder = cache_root() / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def point_link(link: Path, target: str) -> None:
    """Have a link point to what lies beside it, at once. That is wanted now, by `prune`'s clock."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(link.parent / target)
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def prune(folder: Path, pattern: str, keep: str) -> None:
    """Remove what matches, but for one, and what was wanted lately."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another set-up prunes too
            if path.name == keep or time.time() - path.lstat().st_mtime < MAX_IDLE_S:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


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
