"""Looks at programs and files that set-up brings: the guest kernel, tools, and what was built for guests."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from kernel.abi.cache import find_file, find_program
from kernel.boot_files import cache_path, read_lpj
from kernel.doctor.finding import Answer, State
from kernel.manifest import GuestManifest

__all__ = ["guest_kernel", "guest_modules", "initramfs", "lpj", "program", "py_spy"]

UML_MODULES = "/usr/lib/uml/modules"
BLOCK_MODULE = "kernel/drivers/block/virtio_blk.ko"
ANSWER_DEADLINE_S = 5.0


def program(name: str) -> Callable[[], Answer]:
    """A look for one program: where set-up looks for it."""

    def look() -> Answer:
        path = find_program(name)
        return Answer(State.OK, str(path)) if path else Answer(State.MISSING, "not found")

    return look


def py_spy() -> Answer:
    """py-spy beside this interpreter, where the hypervisor runs it, and whether Yama lets it look at a domain."""
    path = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
    if path is None:
        return Answer(State.MISSING, "not found")
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return Answer(State.OK, path)
    admin_only, never = 2, 3
    if scope == never or (scope == admin_only and os.geteuid() != 0):
        value = f"{path}, but kernel.yama.ptrace_scope is {scope}"
        return Answer(State.DEGRADED, value, "sudo sysctl -w kernel.yama.ptrace_scope=1 (3 stays until the next boot)")
    return Answer(State.OK, path)


def guest_kernel() -> Answer:
    """The guest kernel that the default manifest names, asked for its version."""
    path = cache_path(GuestManifest().kernel)
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_DEADLINE_S, check=False)
    if told.returncode != 0:
        return Answer(State.MISSING, f"{path} does not run: exit status {told.returncode}")
    return Answer(State.OK, f"{path} {told.stdout.strip()}")


def guest_modules() -> Answer:
    folder = find_file(UML_MODULES)
    trees = [tree for tree in sorted(folder.glob("*")) if (tree / BLOCK_MODULE).is_file()] if folder else []
    if not trees:
        return Answer(State.MISSING, f"no {BLOCK_MODULE} in {UML_MODULES}")
    return Answer(State.OK, ", ".join(map(str, trees)))


def initramfs() -> Answer:
    """The initramfs that the default manifest names; set-up builds it."""
    path = cache_path(GuestManifest().ramdisk)
    return Answer(State.OK, f"{path}, {path.stat().st_size >> 10} KiB")


def lpj() -> Answer:
    """This host's loops per jiffy; set-up measures them."""
    value = read_lpj(GuestManifest())
    return Answer(State.OK, str(value)) if value else Answer(State.MISSING, "not measured")
