"""Memory and CPU time of processes, as the host's /proc tells them."""

import mmap
import os
from pathlib import Path

__all__ = ["back_memory", "cpu_s", "family_of", "pss_mib", "rss_mib", "uss_mib"]

MIB = 1 << 20
MADV_NOHUGEPAGE = 15
"""`asm-generic/mman-common.h`: each page is a fault of its own."""


def uss_mib(pid: int) -> float:
    """Memory that is this process's alone: what its end would free."""
    return _sum_mib(pid, ("Private_Clean:", "Private_Dirty:"))


def pss_mib(pid: int) -> float:
    """Its memory, with its part of what it shares."""
    return _sum_mib(pid, ("Pss:",))


def rss_mib(pid: int) -> float:
    """All that it has mapped and is there."""
    return _sum_mib(pid, ("Rss:",))


def _sum_mib(pid: int, names: tuple[str, ...]) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(names)) / 1024


def cpu_s(pid: int) -> float:
    """CPU time of all its threads that are there, as the scheduler counts it, in ns (proc_pid_schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parents.setdefault(_parent_of(name), []).append(int(name))
    family = [pid]
    for member in family:
        family += parents.get(member, [])
    return family


def _parent_of(name: str) -> int:
    try:
        return int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def back_memory(mib: int) -> None:
    """Have the machine below give us so much memory now, where this one is virtual and gives back what is free: a page
    that is not backed costs 7 µs to take and one that is 2, whoever takes it."""
    with mmap.mmap(-1, mib * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.madvise(MADV_NOHUGEPAGE)
        for at in range(0, mib * MIB, mmap.PAGESIZE):
            taken[at] = 1
