"""System packages for an ordinary user: downloaded and unpacked into the cache, whole or not at all.

    packages/lock                held by the set-up at work
    packages/apt/                apt's own, where the system's package index would not do
    packages/archives/           what was downloaded; and what was cut short
    packages/<hash>/             what those archives hold, `kernel.abi.cache` has its layout
    packages/current             a link to the one in use
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.cache import cache_root
from triovisor.provision.apt import Apt, Archive
from triovisor.provision.files import SetupError, point_link, prune

__all__ = ["Packages", "locked"]

UNFINISHED = "unfinished"
"""Where a folder is put together. What is there without the lock is what a killed set-up left."""

PROGRAM_FOLDERS = ("usr/bin", "bin", "usr/sbin", "sbin")
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib")
AS_THEY_ARE = ("linux.uml", "busybox")
"""Opened as files by others, and in need of nothing beside them."""

WRAPPER = """#!/bin/sh
# Made by triovisor.provision: this program was unpacked, and finds what it needs beside it.
export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}" PATH="{programs}:$PATH"
export MKE2FS_CONFIG="{root}/etc/mke2fs.conf"
exec {command} "$@"
"""
MUSL_SPECS = "usr/lib/x86_64-linux-musl/musl-gcc.specs"


@contextlib.contextmanager
def locked(name: str = "packages") -> Iterator["Packages"]:
    """A folder of packages, to this process alone: guests' or, by another name, others'. Waits for another set-up."""
    folder = cache_root().absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("packages   waiting for another set-up to finish", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Packages(folder, lock.fileno())


@dataclass(frozen=True, slots=True)
class Packages:
    """The locked folder. A program that outlives a killed set-up holds the lock too, until it has ended."""

    folder: Path
    lock: int

    def unpack(self, packages: Sequence[str]) -> None:
        """Have the packages' files in `current`, and a way to run the programs among them.

        Can be killed at any point: the next one goes on where it was. Raises SetupError.
        """
        if re.search(r"[^\w/.,+@=-]", str(self.folder)):
            raise SetupError(f"{self.folder}: a compiler's paths are plain; give TRIOVISOR_CACHE one without blanks")
        archives_folder = self.folder / "archives"
        archives_folder.mkdir(exist_ok=True)
        apt = Apt(self.folder / "apt", self.lock)
        archives = apt.bring(packages, archives_folder)
        made_of = [WRAPPER, *sorted(archive.sha256 for archive in archives)]
        key = hashlib.sha256("".join(made_of).encode()).hexdigest()[:16]
        if not (self.folder / key).exists():
            self._unpack(key, [archives_folder / archive.file for archive in archives])
        point_link(self.folder / "current", key)
        self._prune(key, archives)

    def _unpack(self, key: str, archives: Sequence[Path]) -> None:
        unfinished = self.folder / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "bin").mkdir(parents=True)
        for number, archive in enumerate(archives, start=1):
            print(f"packages   unpacking {number} of {len(archives)}: {archive.name.rpartition('-')[0]}", flush=True)
            command = ["dpkg-deb", "--extract", str(archive), str(unfinished / "root")]
            done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[self.lock])
            if done.returncode:
                raise SetupError(f"{archive}: dpkg-deb: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        make_runnable(unfinished, self.folder / key)
        unfinished.rename(self.folder / key)

    def _prune(self, key: str, archives: Sequence[Archive]) -> None:
        """Archives are the lock's holder's alone; a folder may be in use by who began with it."""
        wanted = {archive.file for archive in archives}
        for path in (self.folder / "archives").iterdir():
            if path.name not in wanted:
                path.unlink()
        prune(self.folder, "????????????????", keep=key)


def make_runnable(made: Path, final: Path) -> None:
    """Put a way to run each program of `made/root` into `made/bin`, which works once `made` has its final path."""
    root = final / "root"
    libraries, programs = (
        ":".join(str(root / where) for where in folders) for folders in (LIBRARY_FOLDERS, PROGRAM_FOLDERS)
    )
    for where in reversed(PROGRAM_FOLDERS):
        for found in (made / "root" / where).glob("*"):
            path = made / "bin" / found.name
            path.unlink(missing_ok=True)
            if found.name in AS_THEY_ARE:
                path.symlink_to(f"../root/{where}/{found.name}")
            elif found.is_file() and os.access(found, os.X_OK):
                command = _musl_gcc(made, final) if found.name == "musl-gcc" else str(root / where / found.name)
                path.write_text(WRAPPER.format(libraries=libraries, programs=programs, root=root, command=command))
                path.chmod(0o755)


def _musl_gcc(made: Path, final: Path) -> str:
    """The command that is the C compiler over musl: that of PATH, the unpacked one or else the system's."""
    root = final / "root"
    specs = (made / "root" / MUSL_SPECS).read_text()
    (made / "musl-gcc.specs").write_text(specs.replace(" /usr/", f" {root}/usr/").replace("-L/", f"-L{root}/"))
    return f"gcc -specs {final}/musl-gcc.specs"
