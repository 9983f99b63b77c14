"""Processes of a hypervisor as the host's /proc shows them."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.promises.events import wait_until

__all__ = ["Process", "children_of", "descendants_of", "links_of", "status_of", "wait_gone"]


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told from a later one with its pid by when it started."""

    pid: int
    parent: int
    started: int
    program: str
    state: str

    def is_there(self) -> bool:
        """Whether it still is, if only as a zombie that its own dead parent's heir has not looked at."""
        now = _read(self.pid)
        return now is not None and now.started == self.started and now.state != "Z"


def _read(pid: int) -> Process | None:
    """proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Process(pid, int(fields[1]), int(fields[19]), program, fields[0])


def _all() -> list[Process]:
    found = (_read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def children_of(pid: int) -> list[Process]:
    """Its children."""
    return [process for process in _all() if process.parent == pid]


def descendants_of(pid: int) -> list[Process]:
    """Its children, theirs, and so on."""
    everyone = _all()
    family, found = {pid}, []
    while new := [process for process in everyone if process.parent in family and process.pid not in family]:
        family.update(process.pid for process in new)
        found += new
    return found


def wait_gone(processes: list[Process], deadline_s: float) -> None:
    """Wait until none of them is left; fail with those that are."""
    wait_until(lambda: not any(p.is_there() for p in processes), f"gone: {processes}", deadline_s)


def status_of(pid: int) -> dict[str, str]:
    """proc_pid_status(5)."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (row.partition(":") for row in rows)}


def links_of(pid: int, folder: str) -> dict[str, str]:
    """What the links in /proc/PID/fd or /proc/PID/ns lead to."""
    links = {}
    for entry in Path(f"/proc/{pid}/{folder}").iterdir():
        try:
            links[entry.name] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return links
