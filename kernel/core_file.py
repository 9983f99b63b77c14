"""One file for a core of a guest's memory: under another name until it is whole, and removed where it never is."""

import os
from pathlib import Path

__all__ = ["Core"]

MAGIC = b"\x7fELF"
"""The first bytes of a core, which its writer writes last of all."""


class Core:
    """A core that may be written to `descriptor`."""

    def __init__(self, folder: Path, name: str) -> None:
        number = 1
        while (folder / f"{name}.{number}.core").exists() or (folder / f"{name}.{number}.part").exists():
            number += 1
        self._part = folder / f"{name}.{number}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(self._part, flags, 0o600)

    def keep(self) -> Path | None:
        """Give it its name if it is whole, else remove it. Once."""
        try:
            whole = os.pread(self.descriptor, len(MAGIC), 0) == MAGIC
        finally:
            os.close(self.descriptor)
        if whole:
            return self._part.rename(self._part.with_suffix(".core"))
        self._part.unlink(missing_ok=True)
        return None
