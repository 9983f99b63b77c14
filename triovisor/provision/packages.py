"""System packages: only what is missing is brought, and what is there is found by its file, whoever put it there.

Root has them installed. For an ordinary user they are unpacked into the cache.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.cache import find_file, find_program, unpacked_packages
from triovisor.provision.files import SetupError, is_static
from triovisor.provision.unpacked import locked

__all__ = ["BASE", "Package", "install_packages", "missing_packages", "unpack_missing"]


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package, and the program that suits, or the file, by which it shows that it is there."""

    name: str
    shown_by: str
    purpose: str
    suits: Callable[[Path], bool] = lambda path: True

    def found(self) -> Path | None:
        """Its program or file."""
        if self.shown_by.startswith("/"):
            return find_file(self.shown_by)
        return find_program(self.shown_by, self.suits)


BASE = (
    Package("user-mode-linux", "linux.uml", "the guest kernel"),
    Package("busybox-static", "busybox", "the guest's shell and tools", is_static),
    Package("qemu-utils", "qemu-img", "overlays over disk images"),
    Package("qemu-system-common", "qemu-storage-daemon", "reads them"),
    Package("e2fsprogs", "mke2fs", "file systems on them"),
    Package("gcc", "gcc", "compiles the guest's programs"),
    Package("musl-tools", "musl-gcc", "what they are linked with"),
    Package("linux-libc-dev", "/usr/include/linux/aio_abi.h", "headers for them"),
)

LOCK_TIMEOUT_S = 300
"""Another apt at work is waited for: on a fresh machine that is the unattended upgrade."""


def missing_packages(wanted: Sequence[Package]) -> list[Package]:
    return [package for package in wanted if package.found() is None]


def need_apt(missing: Sequence[Package]) -> None:
    """Raises SetupError that lists what to bring by hand, where there is no apt to bring it."""
    if find_program("apt-get") is None or find_program("dpkg-deb") is None:
        wanted = ", ".join(f"{package.shown_by} ({package.purpose})" for package in missing)
        raise SetupError(f"no apt-get here; bring by your own package manager: {wanted}")


def unpack_missing(wanted: Sequence[Package]) -> None:
    """Unpack into the cache what the system lacks, all of it anew if anything is new: archives that are there are not
    downloaded again. Raises SetupError with the command by which root would mend it."""
    with locked() as packages:
        missing = missing_packages(wanted)  # another set-up may have brought it
        if not missing:
            return
        need_apt(missing)
        unpacked = unpacked_packages()
        lacking = [each for each in wanted if (found := each.found()) is None or unpacked in found.parents]
        try:
            packages.unpack([each.name for each in lacking])
        except SetupError as error:
            names = " ".join(package.name for package in lacking)
            raise SetupError(f"{error}; or have root run: apt-get install {names}") from error
    _see_that_they_are_there(missing)


def install_packages(missing: Sequence[Package]) -> None:
    """Install with apt-get, whose progress is shown. Raises SetupError with the command that mends it."""
    need_apt(missing)
    names = [package.name for package in missing]
    command = f"apt-get install {' '.join(names)}"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT_S}"]
    for step in (["update"], ["install", "--yes", "--no-install-recommends", *names]):
        done = subprocess.run(["apt-get", *options, *step], env=environment, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise SetupError(f"apt-get {step[0]} failed, its reason stands above; then run: {command}")
    _see_that_they_are_there(missing)


def _see_that_they_are_there(brought: Sequence[Package]) -> None:
    still = missing_packages(brought)
    if still:
        first = still[0]
        command = f"apt-get install --reinstall {first.name}"
        raise SetupError(f"{first.name} is installed, but {first.shown_by} is not there; have root run: {command}")
