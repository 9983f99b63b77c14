"""What a figure was taken on."""

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path

from bench.peer import DAEMON
from kernel.abi.cache import find_program
from triovisor.provision.files import KERNEL

__all__ = ["describe_machine"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("trio", "msgspec")


def describe_machine() -> list[tuple[str, str]]:
    """Pairs of what and which, in the order in which they are shown. Call it before anything is measured: a load that
    is there already is not ours, and spoils figures.
    """
    return [
        ("date", time.strftime("%Y-%m-%d %H:%M %Z")),
        ("revision", _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown"),
        ("processor", f"{_cpu_model()}, {len(os.sched_getaffinity(0))} CPUs{_virtual()}"),
        ("load before", f"{os.getloadavg()[0]:.2f} at the mean of the last minute"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 30} GiB"),
        ("host", f"{_distribution()}, Linux {platform.release()}"),
        ("guest kernel", f"User-Mode Linux {_first_line(KERNEL, '--version')}"),
        ("peer", _first_line(DAEMON, "--version")),
        ("Python", f"{platform.python_version()}, {', '.join(f'{p} {metadata.version(p)}' for p in PACKAGES)}"),
    ]


def _first_line(program: str, *arguments: str) -> str:
    found = find_program(program)
    if found is None:
        return "not there"
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _virtual() -> str:
    return " of a virtual machine" if " hypervisor " in Path("/proc/cpuinfo").read_text() else ""


def _distribution() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "an unknown distribution")
