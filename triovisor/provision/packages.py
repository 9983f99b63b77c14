"""System packages: only what is missing is installed, and what is there is found by its file, whoever put it there."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triovisor.provision.files import SetupError, find_program

__all__ = ["BASE", "Package", "install_packages", "missing_packages"]


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package, and the program or file that shows it is there."""

    name: str
    shown_by: str
    purpose: str

    def installed(self) -> bool:
        if self.shown_by.startswith("/"):
            return Path(self.shown_by).exists()
        return find_program(self.shown_by) is not None


BASE = (
    Package("user-mode-linux", "linux.uml", "the guest kernel"),
    Package("busybox-static", "busybox", "the guest's shell and tools"),
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
    return [package for package in wanted if not package.installed()]


def install_packages(missing: Sequence[Package], *, is_root: bool) -> None:
    """Install with apt-get, whose progress is shown. Raises SetupError with the command that mends it."""
    names = [package.name for package in missing]
    command = f"apt-get install {' '.join(names)}"
    if find_program("apt-get") is None:
        wanted = ", ".join(f"{package.shown_by} ({package.purpose})" for package in missing)
        raise SetupError(f"no apt-get here; bring by your own package manager: {wanted}")
    if not is_root:
        raise SetupError(f"only root can install packages; run: sudo {command}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT_S}"]
    for step in (["update"], ["install", "--yes", "--no-install-recommends", *names]):
        done = subprocess.run(["apt-get", *options, *step], env=environment, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise SetupError(f"apt-get {step[0]} failed, its reason stands above; then run: {command}")
    still = missing_packages(missing)
    if still:
        first = still[0]
        raise SetupError(f"{first.name} is installed, but {first.shown_by} is not there; run: {command} --reinstall")
