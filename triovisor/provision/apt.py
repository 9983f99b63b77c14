"""apt, for a user who may not install: which archives a package needs here, and those archives.

It asks what the system's own configuration names, trusts what that trusts, and writes only beneath a folder of ours.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from triovisor.provision.files import SetupError

__all__ = ["Apt", "Archive"]

INSTALLS = re.compile(r"^Inst (?P<name>\S+) (?P<upgrade>\[\S+\] )?\((?P<version>\S+) ", re.MULTILINE)
"""A line of `apt-get --simulate install`. What it would only upgrade is there, in a version that will do."""

OWN_LISTS = "lists-are-whole"
TRIES = 3


@dataclass(frozen=True, slots=True)
class Archive:
    """One package's archive as the package index, which is signed, has it."""

    name: str
    version: str
    file: str
    size: int
    sha256: str

    def whole_in(self, folder: Path) -> Path | None:
        """The archive in a folder, if it is there with every byte as it should be."""
        path = folder / self.file
        try:
            with path.open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return None
        return path if right else None


class Apt:
    """`folder` is where its lists go when the system's are missing or of no use any more."""

    def __init__(self, folder: Path, lock: int) -> None:
        """`lock` is a descriptor that what is run here holds too."""
        self._folder = folder
        self._lock = lock
        for needed in ("lists/partial", "cache/archives/partial"):
            (folder / needed).mkdir(parents=True, exist_ok=True)
        self._own_lists = (folder / OWN_LISTS).exists()

    def archives(self, packages: Sequence[str]) -> list[Archive]:
        """Those that the packages need beside what is installed. Raises SetupError."""
        try:
            return self._resolve(packages)
        except SetupError:
            if self._own_lists:
                raise
        self.update()
        return self._resolve(packages)

    def update(self) -> None:
        """Fetch the package index, for this cache alone. Raises SetupError."""
        print("packages   fetching the package index", flush=True)
        self._own_lists = True
        if self._run("apt-get", "update", captured=False).returncode:
            raise SetupError("apt-get update failed, its reason stands above")
        (self._folder / OWN_LISTS).touch()

    def download(self, archives: Sequence[Archive], folder: Path) -> None:
        """Bring what is not in a folder yet, and check every byte of it. Progress is apt's own. Raises SetupError."""
        for tries_left in reversed(range(TRIES)):
            missing = [archive for archive in archives if archive.whole_in(folder) is None]
            if not missing:
                return
            for archive in missing:
                (folder / archive.file).unlink(missing_ok=True)
            mib = sum(archive.size for archive in missing) / (1 << 20)
            print(f"packages   downloading {len(missing)} archives, {mib:.1f} MiB", flush=True)
            wanted = [f"{archive.name}={archive.version}" for archive in missing]
            failed = self._run("apt-get", "download", *wanted, captured=False, folder=folder).returncode != 0
            for archive in missing:
                _take_name(archive, folder)
            if failed and not self._own_lists and tries_left:
                self.update()  # the system's own may name archives that are no longer there
        bad = [archive.file for archive in archives if archive.whole_in(folder) is None]
        if bad:
            raise SetupError(f"{bad[0]} could not be downloaded as the package index has it; the reason stands above")

    def _resolve(self, packages: Sequence[str]) -> list[Archive]:
        words = ["--simulate", "--yes", "--no-install-recommends", "install", *packages]
        done = self._run("apt-get", *words)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
            raise SetupError(f"apt-get: {(errors or ['failed'])[-1].removeprefix('E: ')}")
        new = [found for found in INSTALLS.finditer(done.stdout) if not found["upgrade"]]
        if not new:
            return []
        told = self._run("apt-cache", "show", *(f"{found['name']}={found['version']}" for found in new))
        return list({archive.file: archive for archive in _archives(told.stdout)}.values())

    def _run(
        self, *command: str, captured: bool = True, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        program, *words = command
        options = [f"Dir::Cache={self._folder / 'cache'}", "Debug::NoLocking=1", "APT::Sandbox::User="]
        options += [f"Dir::State::Lists={self._folder / 'lists'}"] if self._own_lists else []
        argv = [program, *(word for option in options for word in ("-o", option)), *words]
        return subprocess.run(
            argv,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=captured,
            text=True,
            check=False,
            pass_fds=[self._lock],
        )


def _archives(index: str) -> Iterator[Archive]:
    """From the paragraphs of a package index (deb-control(5))."""
    for paragraph in index.split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))
        if "SHA256" in fields:
            file = f"{fields['Package']}-{fields['SHA256'][:16]}.deb"
            yield Archive(fields["Package"], fields["Version"], file, int(fields["Size"]), fields["SHA256"])


def _take_name(archive: Archive, folder: Path) -> None:
    """Give an archive that apt has named its own name, which says what is in it."""
    for path in folder.glob(f"{archive.name}_*.deb"):
        path.replace(folder / archive.file)
