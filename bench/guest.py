"""Rows of a guest's start: from the order to create it until the agent in it speaks, against linux.uml alone."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.bare import start_bare
from bench.effort import Effort
from bench.events import is_event
from bench.figures import percentile
from bench.memory import family_of, pss_mib
from bench.ours import Ours, start_ours
from bench.placement import SERVER_CPU, SYSTEM_CPU
from bench.rows import Row, latency_row
from kernel.abi.guest_config import GuestConfig

__all__ = ["measure_guest"]

MEMORY_MIB = 64
TWENTY = 20
CLIENTS = 4
"""Threads that ask for guests at once."""

QUIET_S = 0.05
"""After a guest's end, before the next begins."""

IDLE_S = 1.0
"""Until a guest has done what it does at its start."""


def measure_guest(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. /init starts the agent, so what is measured ends a little later than /init begins."""
    with start_ours(run / "guest", standby=True) as hypervisor:
        ours, peers = [], []
        for number in range(effort.guest_starts + 1):
            ours.append(_our_start_ms(hypervisor, f"one{number}"))
            peers.append(_bare_start_ms())
        say(f"guest: {effort.guest_starts} starts each")
        our_twenties, peers_twenties = [], []
        for number in range(effort.twenties):
            our_twenties.append(_our_twenty_s(hypervisor, number))
            peers_twenties.append(_bare_twenty_s())
            say(f"guest: {number + 1} of {effort.twenties} times twenty")
        our_mib, peers_mib = _our_pss_mib(hypervisor), _bare_pss_mib()
    return [
        latency_row("guest.create_to_init.p50", percentile(ours[1:], 0.5), percentile(peers[1:], 0.5), "ms"),
        latency_row("guest.create20", statistics.median(our_twenties), statistics.median(peers_twenties), "s"),
        latency_row("guest.pss", our_mib, peers_mib, "MiB"),
    ]


def _our_start_ms(hypervisor: Ours, name: str) -> float:
    began_ns = time.monotonic_ns()
    ready_ns = _create(hypervisor, name)
    hypervisor.client.destroy(name)
    time.sleep(QUIET_S)
    return (ready_ns - began_ns) / 1e6


def _create(hypervisor: Ours, name: str, cpus: str | None = str(SYSTEM_CPU)) -> int:
    """Create a guest and wait until its agent has spoken; when that was, in ns."""
    hypervisor.client.create(GuestConfig(name=name, memory=MEMORY_MIB, cpus=cpus))
    ready_ns: int = hypervisor.guest_log(name).wait(is_event("guest.ready"), f"word of guest {name}")["ns"]
    return ready_ns


def _bare_start_ms() -> float:
    with start_bare(MEMORY_MIB, SYSTEM_CPU) as guest:
        ready_ns = guest.wait_ready()
    time.sleep(QUIET_S)
    return (ready_ns - guest.started_ns) / 1e6


def _our_pss_mib(hypervisor: Ours) -> float:
    """Memory of all processes of an idle guest, its operating system's own in it."""
    _create(hypervisor, "memory")
    time.sleep(IDLE_S)
    return sum(pss_mib(pid) for pid in family_of(hypervisor.client.info("memory").pid or 0))


def _bare_pss_mib() -> float:
    with start_bare(MEMORY_MIB, SYSTEM_CPU) as guest:
        guest.wait_ready()
        time.sleep(IDLE_S)
        return sum(pss_mib(pid) for pid in family_of(guest.pid))


def _our_twenty_s(hypervisor: Ours, number: int) -> float:
    names = [f"twenty{number}-{guest}" for guest in range(TWENTY)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        began_ns = time.monotonic_ns()
        configs = [GuestConfig(name=name, memory=MEMORY_MIB) for name in names]
        list(clients.map(hypervisor.client.create, configs))
        ready = [hypervisor.guest_log(name).wait(is_event("guest.ready"), f"word of guest {name}") for name in names]
        list(clients.map(hypervisor.client.destroy, names))
    time.sleep(QUIET_S)
    last_ns: int = max(event["ns"] for event in ready)
    return (last_ns - began_ns) / 1e9


def _bare_twenty_s() -> float:
    with ExitStack() as stack:
        began_ns = time.monotonic_ns()
        guests = [
            stack.enter_context(start_bare(MEMORY_MIB, SERVER_CPU if number % 2 else SYSTEM_CPU))
            for number in range(TWENTY)
        ]
        ready_ns = max(guest.wait_ready() for guest in guests)
    time.sleep(QUIET_S)
    return (ready_ns - began_ns) / 1e9
