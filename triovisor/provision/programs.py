"""The guest's own programs, compiled static from the C sources beside this file."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from triovisor.provision.files import SetupError, find_program, guest_folder

__all__ = ["PROGRAMS", "build_programs"]

PROGRAMS = {
    "init": ("init.c",),
    "agent": ("agent.c", "shutdown.c"),
    "records": ("records.c",),
    "load": ("load.c",),
}
"""Program → the sources it is made of."""

FLAGS = ("-O2", "-static", "-s", "-Wall", "-Wextra")


def build_programs() -> tuple[dict[str, Path], bool]:
    """Program → its executable, and whether anything had to be compiled.

    Raises SetupError without a C compiler, or where it fails.
    """
    compiler = find_program("gcc")
    if compiler is None:
        raise SetupError("no C compiler for the guest's programs; run: apt-get install gcc libc6-dev")
    with resources.as_file(resources.files("triovisor.provision") / "guest") as sources:
        folder = guest_folder() / f"programs-{_fingerprint(compiler, sources)}"
        built = {name: folder / name for name in PROGRAMS}
        if folder.exists():
            return built, False
        _compile_into(folder, compiler, sources)
    return built, True


def _fingerprint(compiler: Path, sources: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((PROGRAMS, FLAGS)).encode() + version)
    for source in sorted(sources.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile_into(folder: Path, compiler: Path, sources: Path) -> None:
    """All programs or none: the folder appears by one rename. A second set-up that came first is as good."""
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".programs."))
    try:
        for name, parts in PROGRAMS.items():
            _compile(compiler, [sources / part for part in parts], work / name)
        work.chmod(0o755)
        try:
            os.rename(work, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(compiler: Path, sources: list[Path], target: Path) -> None:
    done = subprocess.run([compiler, *FLAGS, "-o", target, *sources], capture_output=True, text=True)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise SetupError(f"{target.name} does not compile: {first}; where libc.a is missing: apt-get install libc6-dev")
