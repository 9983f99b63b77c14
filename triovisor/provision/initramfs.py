"""The initramfs that every para-virtualised guest boots from: busybox, our init and programs, the disk driver.

Uncompressed, since unpacking costs more than reading; deterministic, and named by its content.
"""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kernel.abi.cache import find_file, find_program
from triovisor.provision import cpio
from triovisor.provision.cpio import Entry
from triovisor.provision.files import KERNEL, SetupError, guest_folder, is_static, point_link, prune, publish
from triovisor.provision.programs import PROGRAMS, build_programs

__all__ = ["build_initramfs", "initramfs_entries"]

FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var")
MODULES = ("kernel/drivers/block/virtio_blk.ko",)
"""Under the kernel's module tree. Loaded by guest/init.c from /lib/modules, by name."""

MODULE_TREES = "/usr/lib/uml/modules"
"""Where Debian's user-mode-linux puts them, a folder for each kernel version."""

ETC = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/hosts": b"127.0.0.1 localhost\n",
}
OWN_NAMES = frozenset({"busybox", "linuxrc", *PROGRAMS})
"""Applets that get no link, since the name is taken."""


def build_initramfs() -> tuple[Path, bool]:
    """The initramfs, and whether it had to be built. Raises SetupError that names what is missing."""
    programs, _ = build_programs()
    busybox = _busybox()
    content = cpio.archive(
        initramfs_entries(
            programs.read_bytes(),
            busybox.read_bytes(),
            _applets(busybox),
            {Path(name).name: path.read_bytes() for name, path in _modules().items()},
        )
    )
    path = guest_folder() / f"initramfs-{hashlib.sha256(content).hexdigest()[:16]}.cpio"
    built = not path.exists()
    if built:
        publish(path, content)
    point_link(guest_folder() / "initramfs.cpio", path.name)
    prune(guest_folder(), "initramfs-*", keep=path.name)
    return path, built


def initramfs_entries(
    programs: bytes, busybox: bytes, applets: list[str], modules: Mapping[str, bytes]
) -> list[Entry]:
    """The archive's entries, folders first. `programs` is the executable that is all of PROGRAMS."""
    entries = [cpio.folder(name, 0o1777 if name == "tmp" else 0o755) for name in FOLDERS]
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.file("bin/programs", programs, 0o755))
    entries.append(cpio.link("init", "bin/programs"))
    entries += [cpio.link(f"bin/{name}", "programs") for name in PROGRAMS]
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries += [cpio.link(f"bin/{name}", "busybox") for name in sorted(applets) if name not in OWN_NAMES]
    entries += [cpio.file(f"lib/modules/{name}", code) for name, code in sorted(modules.items())]
    entries += [cpio.file(path, text) for path, text in sorted(ETC.items())]
    return entries


def _busybox() -> Path:
    busybox = find_program("busybox", is_static)
    if busybox is None:
        raise SetupError("no static busybox for the guest; run: apt-get install busybox-static")
    return busybox


def _applets(busybox: Path) -> list[str]:
    return subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()


def _modules() -> dict[str, Path]:
    """The modules of the guest kernel's own version: any other's would not load."""
    kernel = find_program(KERNEL)
    if kernel is None:
        raise SetupError(f"no guest kernel {KERNEL}; run: apt-get install user-mode-linux")
    version = subprocess.run([kernel, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    found = {}
    for name in MODULES:
        path = find_file(f"{MODULE_TREES}/{version}/{name}")
        if path is None:
            raise SetupError(f"{name} of {version} is missing; run: apt-get install --reinstall user-mode-linux")
        found[name] = path
    return found
