"""Rows of many domains: how soon a hundred start, whether the five-hundredth costs more than the first, what they cost
while nobody wants anything of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.effort import Effort
from bench.figures import percentile
from bench.memory import back_memory, cpu_s, rss_mib, uss_mib
from bench.native import PROGRAM, main_ns
from bench.ours import Ours, start_ours
from bench.rows import Row, latency_row, time_row
from kernel.abi.guest_config import GuestConfig
from kernel.manifest import NativeManifest

__all__ = ["BUSY_HEARTBEAT", "Crowd", "measure_crowd"]

AT_ONCE = 32
"""Creates that are asked for at a time: Dom0 answers twice as many."""

MEMORY_MIB = 24
DOMAIN_MIB = 8
"""That one more takes of the machine, at most; `ALONE_MIB`: those that are created one by one, together."""
ALONE_MIB = 512
QUIET_S = 0.05

SETTLE_S = 30.0
"""After many were created: the pings of idle domains are more than a minute apart then."""

BUSY_HEARTBEAT = "[native]\nheartbeat = { interval_s = 1.0, deadline_s = 5.0, idle_s = 1.0 }\n"


def measure_crowd(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group."""
    program = run / "crowd.py"
    program.write_text(PROGRAM)
    with start_ours(run / "crowd", standby=False) as hypervisor:
        crowd = Crowd(hypervisor, program)
        back_memory(ALONE_MIB)
        alone_ms = crowd.grow_one_by_one(effort.crowd_alone)
        small_mib = rss_mib(hypervisor.pid)
        back_memory(DOMAIN_MIB * effort.crowd)
        start_s = crowd.grow_at_once(effort.crowd)
        say(f"crowd: {effort.crowd} at once")
        crowd.grow_at_once(effort.crowd_whole - len(crowd) - effort.crowd_alone)
        time.sleep(SETTLE_S * effort.idle_s / 10)
        back_memory(ALONE_MIB)
        last_ms = crowd.grow_one_by_one(effort.crowd_alone)
        grown_kib = 1024 * max(0.0, rss_mib(hypervisor.pid) - small_mib) / (len(crowd) - effort.crowd_alone)
        own_mib = crowd.uss_mib()
        say(f"crowd: {len(crowd)} there")
        time.sleep(SETTLE_S * effort.idle_s / 10)
        idle = _share_of_a_cpu(hypervisor, effort.idle_s)
        say("crowd: idle")
    ping_s = _ping_s(run, program, effort)
    say("crowd: pings")
    pings = len(crowd) / NativeManifest().heartbeat.idle_s * ping_s
    return [
        time_row("crowd.start100", start_s, "s"),
        latency_row("crowd.create_to_main.at500", percentile(last_ms, 0.5), percentile(alone_ms, 0.5), "ms"),
        time_row("crowd.idle500", 100 * (idle + pings), "%"),
        time_row("crowd.hypervisor_per_domain", grown_kib, "KiB"),
        time_row("crowd.uss_per_domain", own_mib, "MiB"),
    ]


class Crowd:
    """Native guests that do nothing."""

    def __init__(self, hypervisor: Ours, program: Path) -> None:
        self._hypervisor = hypervisor
        self._program = program
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def grow_one_by_one(self, count: int) -> list[float]:
        """The time of each from the order to its program, in ms."""
        times_ms = []
        for name in self._new(count):
            began_ns = time.monotonic_ns()
            self._create(name)
            time.sleep(QUIET_S)
            times_ms.append((self._main_ns(name) - began_ns) / 1e6)
        return times_ms

    def grow_at_once(self, count: int) -> float:
        """Seconds from the first order until the program of the last runs."""
        began_ns = time.monotonic_ns()
        names = self._new(count)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._create, names))
        return max((self._main_ns(name) - began_ns for name in names), default=0) / 1e9

    def uss_mib(self) -> float:
        """The median of some."""
        pids = [self._hypervisor.client.info(name).pid for name in self._names[-5:]]
        return statistics.median(uss_mib(pid) for pid in pids if pid is not None)

    def _new(self, count: int) -> Sequence[str]:
        names = [f"n{number}" for number in range(len(self._names), len(self._names) + count)]
        self._names += names
        return names

    def _create(self, name: str) -> None:
        self._hypervisor.client.create(
            GuestConfig(name=name, type="native", program=str(self._program), memory=MEMORY_MIB)
        )

    def _main_ns(self, name: str) -> int:
        return main_ns(self._hypervisor.run / "console" / f"{name}.log")


def _share_of_a_cpu(hypervisor: Ours, seconds: float) -> float:
    before_s, began_s = cpu_s(hypervisor.pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(hypervisor.pid) - before_s) / (time.monotonic() - began_s)


def _ping_s(run: Path, program: Path, effort: Effort) -> float:
    """CPU time of the hypervisor for one ping and its pong, of domains that are asked once a second."""
    with start_ours(run / "pings", standby=False, more=BUSY_HEARTBEAT) as hypervisor:
        crowd = Crowd(hypervisor, program)
        crowd.grow_at_once(effort.crowd)
        time.sleep(1.0)
        return _share_of_a_cpu(hypervisor, effort.idle_s) / len(crowd)
