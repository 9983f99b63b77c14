"""Looks at programs and files that set-up brings: the guest kernel, tools, and what was built for guests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kernel.doctor.finding import Answer, State

__all__ = ["built", "guest_kernel", "guest_modules", "program", "py_spy"]

ADMIN_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where mke2fs is, and where an ordinary user's PATH does not look."""

UML_MODULES = Path("/usr/lib/uml/modules")
BLOCK_MODULE = "kernel/drivers/block/virtio_blk.ko"
ANSWER_DEADLINE_S = 5.0


def find_program(name: str) -> str | None:
    """Where a program is: beside this interpreter, in PATH, in the administrator's folders."""
    beside = os.path.dirname(sys.executable)
    return shutil.which(name, path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath), ADMIN_FOLDERS)))


def program(name: str) -> Callable[[], Answer]:
    """A look for one program."""

    def look() -> Answer:
        path = find_program(name)
        return Answer(State.OK, path) if path else Answer(State.MISSING, "not found")

    return look


def py_spy() -> Answer:
    """py-spy, and whether Yama lets it look at a domain."""
    path = find_program("py-spy")
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
    path = find_program("linux.uml")
    if path is None:
        return Answer(State.MISSING, "linux.uml not found")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_DEADLINE_S, check=False)
    if told.returncode != 0:
        return Answer(State.MISSING, f"{path} does not run: exit status {told.returncode}")
    return Answer(State.OK, f"{path} {told.stdout.strip()}")


def guest_modules() -> Answer:
    trees = [tree for tree in sorted(UML_MODULES.glob("*")) if (tree / BLOCK_MODULE).is_file()]
    if not trees:
        return Answer(State.MISSING, f"no {BLOCK_MODULE} in {UML_MODULES}")
    return Answer(State.OK, ", ".join(map(str, trees)))


def built(name: str) -> Callable[[], Answer]:
    """A look for one thing that set-up makes for guests, in `$TRIOVISOR_CACHE` or ~/.cache/triovisor."""

    def look() -> Answer:
        cache = Path(os.environ.get("TRIOVISOR_CACHE") or Path.home() / ".cache" / "triovisor")
        path = cache / "guest" / name
        if not path.is_file():
            return Answer(State.MISSING, f"{path} is not there")
        return Answer(State.OK, f"{path}, {path.stat().st_size} bytes")

    return look
