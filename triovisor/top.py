"""`tv top`: a live table of the domains, as `xentop` has it. The figures are those of `tv list`, asked for again and
again; what is shown as CPU(%) is what was used between two answers."""

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from kernel.abi.guest_config import DomainInfo
from triovisor.client import Client
from triovisor.render import Table, columns, state_slots
from triovisor.terminal import raw_terminal, window_size, woken_by_resize

__all__ = ["Row", "Sample", "rows", "screen", "show_top"]

QUIT = b"q\x03\x04\x1b"
"""q, Ctrl-C, Ctrl-D, Escape."""

_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
"""Another screen without a cursor, and back."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer of `tv list`, and when it came, in seconds."""

    at_s: float
    domains: Sequence[DomainInfo]


class Row(NamedTuple):
    """A domain between two samples. `cpu_percent` of one CPU; none in the first sample that has it."""

    name: str
    domid: int
    state: str
    cpu_s: float
    cpu_percent: float | None
    memory: int
    vcpus: int
    vbds: int
    restarts: int


def rows(before: Sample | None, now: Sample) -> list[Row]:
    """Who used most comes first. A domain that was started anew counts from its start."""
    used = {} if before is None else {(d.domid, d.generation): d.cpu_time_s for d in before.domains}
    found = [_row(domain, used.get((domain.domid, domain.generation)), before, now) for domain in now.domains]
    return sorted(found, key=lambda row: (-(row.cpu_percent or 0.0), row.domid))


def _row(domain: DomainInfo, used_s: float | None, before: Sample | None, now: Sample) -> Row:
    percent = None
    if before is not None and used_s is not None and now.at_s > before.at_s:
        percent = round(max(0.0, 100 * (domain.cpu_time_s - used_s) / (now.at_s - before.at_s)), 1)
    return Row(
        domain.name,
        domain.domid,
        state_slots(domain.state),
        domain.cpu_time_s,
        percent,
        domain.memory,
        domain.vcpus,
        len(domain.vbds),
        domain.restarts,
    )


def screen(host: dict[str, Any], table: Sequence[Row], lines: int, width: int) -> list[str]:
    """What fits a terminal of that size."""
    running = sum(row.state.startswith("r") for row in table)
    paused = sum("p" in row.state for row in table)
    crashed = sum("c" in row.state for row in table)
    head = [
        f"tv top - triovisor {host.get('triovisor_version', '?')} on {host.get('host', '?')}, q ends",
        f"{len(table)} domains: {running} running, {paused} paused, {crashed} crashed   "
        f"CPUs: {host.get('nr_cpus', '?')}   "
        f"Mem: {host.get('total_memory', '?')} M, {host.get('free_memory', '?')} M free",
        "",
    ]
    named = ("NAME", "ID", "STATE", "CPU(sec)", "CPU(%)", "MEM(M)", "VCPUS", "VBDS", "RESTARTS")
    body = columns(Table(named, [_cells(row) for row in table])).splitlines()
    return [line[:width] for line in (head + body)[:lines]]


def _cells(row: Row) -> tuple[Any, ...]:
    percent = "-" if row.cpu_percent is None else f"{row.cpu_percent:.1f}"
    return (row.name, row.domid, row.state, f"{row.cpu_s:8.1f}", f"{percent:>6}", *row[5:])


def show_top(
    client: Client, delay_s: float, iterations: int | None, batch: bool, write: Callable[[bytes], None]
) -> None:
    """Show it until somebody quits, or so many times. `batch`: a JSON object a line for each time, on no terminal."""
    host = client.host()
    with raw_terminal() as is_terminal, woken_by_resize() as resized:
        live = is_terminal and not batch
        if live:
            write(_ENTER)
        try:
            before, shown = None, 0
            while iterations is None or shown < iterations:
                now = Sample(time.monotonic(), client.list())
                table = rows(before, now)
                write(_drawn(host, table) if live else _as_json(table))
                before, shown = now, shown + 1
                if shown != iterations and _wait(delay_s, resized, live):
                    return
        finally:
            if live:
                write(_LEAVE)


def _drawn(host: dict[str, Any], table: Sequence[Row]) -> bytes:
    """From the upper left corner, each line to its end, then what is below."""
    lines, width = window_size() or (24, 80)
    shown = [f"{line}\x1b[K\r\n" for line in screen(host, table, lines - 1, width)]
    return f"\x1b[H{''.join(shown)}\x1b[J".encode()


def _as_json(table: Sequence[Row]) -> bytes:
    return msgspec.json.encode([row._asdict() for row in table]) + b"\n"


def _wait(delay_s: float, resized: int, live: bool) -> bool:
    """Until the next time, or at once where the window has another size. True where somebody quits."""
    poll = select.poll()
    poll.register(resized, select.POLLIN)
    if live:
        poll.register(0, select.POLLIN)
    until_s = time.monotonic() + delay_s
    while (left_s := until_s - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left_s * 1000):
            if descriptor == resized:
                os.read(resized, 512)
                return False
            keys = os.read(0, 512)
            if not keys or any(key in QUIT for key in keys):
                return True
    return False
