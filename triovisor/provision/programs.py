"""The guest's own programs, compiled static from the C sources beside this file."""

import hashlib
import os
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from kernel.abi.cache import find_program, unpacked_packages
from triovisor.provision.files import SetupError, guest_folder, prune, publish

__all__ = ["PROGRAMS", "build_programs"]

PROGRAMS = ("agent", "init", "load", "records", "zero")
"""The names by which the one executable is called: guest/main.c."""

COMPILER = "musl-gcc"
"""Against the GNU library the executable has 900 KB and not 110: with it twice in memory, 20 MiB do not boot."""

FLAGS = ("-O2", "-static", "-s", "-Wall", "-Wextra")
KERNEL_HEADERS = ("/usr/include", "/usr/include/x86_64-linux-gnu")
"""musl-gcc looks in none of the system's folders; <linux/aio_abi.h> is there, or where its package was unpacked."""


def build_programs() -> tuple[Path, bool]:
    """The executable, and whether it had to be compiled. Raises SetupError without a C compiler, or where it fails."""
    compiler = find_program(COMPILER)
    if compiler is None:
        raise SetupError(f"no {COMPILER} for the guest's programs; run: apt-get install musl-tools linux-libc-dev")
    with resources.as_file(resources.files("triovisor.provision") / "guest") as sources:
        built = guest_folder() / f"programs-{_fingerprint(compiler, sources)}"
        known = built.exists()
        if known:
            os.utime(built)  # wanted now, by prune's clock
        else:
            publish(built, _compile(compiler, sorted(sources.glob("*.c"))), 0o755)
    prune(guest_folder(), "programs-*", keep=built.name)
    return built, not known


def _fingerprint(compiler: Path, sources: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((FLAGS, KERNEL_HEADERS)).encode() + version)
    for source in sorted(sources.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: Path, sources: list[Path]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "programs"
        unpacked = unpacked_packages() / "root"
        roots = [Path("/"), *([unpacked] if unpacked.exists() else [])]
        headers = [f"-idirafter{root / path.lstrip('/')}" for root in roots for path in KERNEL_HEADERS]
        argv: list[str | Path] = [compiler, *FLAGS, *headers, "-o", target, *sources]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode == 0:
            return target.read_bytes()
    first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    raise SetupError(f"the guest's programs do not compile: {first}")
