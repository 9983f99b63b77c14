"""Rows of one jailed domain: how soon it starts, and what memory is its own."""

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bench.effort import Effort
from bench.events import Event, is_event
from bench.figures import percentile
from bench.load import BenchError
from bench.memory import uss_mib
from bench.ours import DRIVER, Ours, start_ours
from bench.rows import Row, time_row

__all__ = ["measure_domain"]

QUIET_S = 0.1
"""Between two starts: as deaths come one at a time, and not in a storm."""

DEATH_S = 5.0


def measure_domain(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. A driver's standby is killed: its death is the order to start the next one."""
    starts_ms = []
    with start_ours(run / "domain", standby=True) as hypervisor:
        standby = _first_standby(hypervisor)
        for _ in range(effort.domain_starts):
            time.sleep(QUIET_S)
            dead_ns = _kill(standby["pid"])
            standby = _next_cloned(hypervisor, standby)
            started = hypervisor.log.wait(is_event("domain.started", peer=standby["peer"]), "start")
            starts_ms.append((started["ns"] - dead_ns) / 1e6)
        time.sleep(QUIET_S)
        own_mib = uss_mib(standby["pid"])
    say(f"domain: {len(starts_ms)} starts")
    return [time_row("domain.start.p50", percentile(starts_ms, 0.5), "ms"), time_row("domain.uss", own_mib, "MiB")]


def _kill(pid: int) -> int:
    """Kill it, and wait until all of it is gone: when that was, in ns, which is when its successor is ordered."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ready, _, _ = select.select([pidfd], [], [], DEATH_S)
        if not ready:
            raise BenchError(f"process {pid} does not die")
        return time.monotonic_ns()
    finally:
        os.close(pidfd)


def _first_standby(hypervisor: Ours) -> Event:
    """The second incarnation of the driver, started."""
    first = hypervisor.log.wait(is_event("driver.activated", name=DRIVER), "driver")
    standby = _next_cloned(hypervisor, first)
    hypervisor.log.wait(is_event("domain.started", peer=standby["peer"]), "standby")
    return standby


def _next_cloned(hypervisor: Ours, before: Event) -> Event:
    peer = f"{before['peer'].split('.')[0]}.{_generation(before) + 1}"
    return hypervisor.log.wait(is_event("domain.cloned", peer=peer), "clone")


def _generation(event: Event) -> int:
    return int(event["peer"].split(".")[1])
