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

URIS = re.compile(r"^'(?P<uri>\S+)' (?P<name>[^\s_]+)_", re.MULTILINE)
"""A line of `apt-get --print-uris download`: where an archive is, and its name."""

HELPER = "/usr/lib/apt/apt-helper"
"""A part of apt's. It goes on with a file that was cut short; `apt-get download` begins it anew."""

OWN_LISTS = "lists-are-whole"
RETRIES = 3


@dataclass(frozen=True, slots=True)
class Archive:
    """One package's archive as the package index, which is signed, has it."""

    name: str
    version: str
    file: str
    size: int
    sha256: str

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has it with every byte as it should be."""
        try:
            with (folder / self.file).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False

    def remove_if_wrong(self, folder: Path) -> None:
        """What is not whole, and yet too long to be gone on with."""
        path = folder / self.file
        if path.exists() and path.stat().st_size >= self.size:
            path.unlink()


class Apt:
    """`folder` is where its lists go when the system's are missing or of no use any more."""

    def __init__(self, folder: Path, lock: int) -> None:
        """`lock` is a descriptor that what is run here holds too."""
        self._folder = folder
        self._lock = lock
        for needed in ("lists/partial", "cache/archives/partial"):
            (folder / needed).mkdir(parents=True, exist_ok=True)
        self._own_lists = (folder / OWN_LISTS).exists()

    def bring(self, packages: Sequence[str], folder: Path) -> list[Archive]:
        """Have in a folder the archives that the packages need beside what is installed, and check every byte of them.
        Progress is apt's own. Raises SetupError.

        An archive that is cut short is gone on with, if whoever cut it short had apt end by itself: Ctrl-C, a network.
        """
        archives = self._archives(packages)
        if not self._download(archives, folder) and not self._own_lists:
            self._update()  # the system's own may name archives that are no longer there
            archives = self._resolve(packages)
            self._download(archives, folder)
        bad = [archive.file for archive in archives if not archive.is_in(folder)]
        if bad:
            raise SetupError(f"{bad[0]} could not be downloaded as the package index has it; the reason stands above")
        return archives

    def _archives(self, packages: Sequence[str]) -> list[Archive]:
        try:
            return self._resolve(packages)
        except SetupError:
            if self._own_lists:
                raise
        self._update()
        return self._resolve(packages)

    def _update(self) -> None:
        """Fetch the package index, for this cache alone."""
        print("packages   fetching the package index", flush=True)
        self._own_lists = True
        if self._run("apt-get", "update", captured=False).returncode:
            raise SetupError("apt-get update failed, its reason stands above")
        (self._folder / OWN_LISTS).touch()

    def _download(self, archives: Sequence[Archive], folder: Path) -> bool:
        """Whether apt brought what is not there yet."""
        missing = [archive for archive in archives if not archive.is_in(folder)]
        if not missing:
            return True
        told = self._run("apt-get", "--print-uris", "download", *(f"{each.name}={each.version}" for each in missing))
        uris = {found["name"]: found["uri"] for found in URIS.finditer(told.stdout)}
        words: list[str] = []
        for archive in missing:
            archive.remove_if_wrong(folder)
            if archive.name in uris:
                words += [uris[archive.name], str(folder / archive.file), f"SHA256:{archive.sha256}"]
        mib = sum(archive.size for archive in missing) / (1 << 20)
        print(f"packages   downloading {len(missing)} archives, {mib:.1f} MiB", flush=True)
        done = self._run(HELPER, "download-file", *words, captured=False)
        return len(uris) == len(missing) and done.returncode == 0

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

    def _run(self, *command: str, captured: bool = True) -> subprocess.CompletedProcess[str]:
        program, *words = command
        options = [f"Dir::Cache={self._folder / 'cache'}", "Debug::NoLocking=1", "APT::Sandbox::User="]
        options.append(f"Acquire::Retries={RETRIES}")
        options += [f"Dir::State::Lists={self._folder / 'lists'}"] if self._own_lists else []
        argv = [program, *(word for option in options for word in ("-o", option)), *words]
        return subprocess.run(
            argv,
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
