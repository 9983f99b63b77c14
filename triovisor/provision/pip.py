"""`python -m triovisor.provision.pip`: put pip into this virtual environment where its Python came without ensurepip.

Debian has that in a package of its own, which an ordinary user cannot install; the wheel in it is all that is needed.
Runs before any Python package is there.
"""

import subprocess
import sys
from pathlib import Path

from kernel.abi.cache import find_file
from triovisor.provision.files import SetupError, exit_status
from triovisor.provision.packages import Package, unpack_missing

__all__ = ["main"]

WHEELS = Package("python3-pip-whl", "/usr/share/python-wheels", "pip")


def main() -> int:
    """0: pip is there. 1: it is not, and one line on stderr says what mends it."""
    return exit_status("setup", _install)


def _install() -> None:
    wheel = _wheel()
    if subprocess.run([sys.executable, f"{wheel}/pip", "install", "--no-index", wheel], check=False).returncode:
        raise SetupError(f"{wheel}: the reason stands above; or have root run: apt-get install python3-venv")


def _wheel() -> Path:
    unpack_missing([WHEELS])
    folder = find_file(WHEELS.shown_by)
    wheels = sorted(folder.glob("pip-*.whl")) if folder else []
    if not wheels:
        raise SetupError(f"no pip in {folder}; have root run: apt-get install --reinstall {WHEELS.name}")
    return wheels[-1]


if __name__ == "__main__":
    sys.exit(main())
