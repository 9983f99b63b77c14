"""Rows of recovery: what a guest under load sees of kill -9 of its disk driver, and how soon the successor serves."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.block import allocated_image
from bench.effort import Effort
from bench.events import Event, is_event
from bench.figures import Gap, Window, gaps_of_kills, percentile
from bench.load import BenchError, LoadReport, parse_report
from bench.ours import DRIVER, Ours, start_ours
from bench.placement import SYSTEM_CPU
from bench.rows import Row, time_row
from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.guest_io import Stream
from triovisor.client import Client
from triovisor.command import BytesSource, Command, pump

__all__ = [
    "EXTRA", "GUEST", "LOAD", "MEMORY_MIB", "QUIET_S", "SEED", "SHORTEST_MS", "SKEW_S", "UNWATCHED_S", "measure_kills",
]  # fmt: skip

GUEST = "bench"
MEMORY_MIB = 128
EXTRA = "nohz=off"
SHORTEST_MS = 1.0
"""Shorter gaps are not listed."""

LOAD = ["load", "/dev/vda", "op=verify", "size=4k", "depth=32", "span=32m", "seconds=600"]
SKEW_S = 0.02
"""The load's clock is known from when its first word came: not exactly."""

QUIET_S = (0.05, 0.15)
"""Between a whole recovery and the next kill, by chance, so that kills fall into every phase of the load."""

UNWATCHED_S = 0.03
"""Nobody looks at the log while the recovery goes on: reading it took the hypervisor's CPU for a millisecond."""

SEED = 20
STARTED_S, REPORT_S = 10.0, 60.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, in ns of the monotonic clock: when the signal was sent, when the successor was active with its ring
    mapped."""

    sent_ns: int
    ready_ns: int

    @property
    def ready_ms(self) -> float:
        return (self.ready_ns - self.sent_ns) / 1e6

    @property
    def window(self) -> Window:
        return Window(self.sent_ns / 1e9, self.ready_ns / 1e9)


def measure_kills(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. Raises BenchError when the guest saw an error or a wrong block."""
    figures: dict[str, list[float]] = {}
    for name, standby in (("cold", False), ("standby", True)):
        kills, gaps = _measure(run / f"kills-{name}", standby, effort.kills)
        figures[f"gap.kill.{name}"] = gaps_of_kills([kill.window for kill in kills], gaps, SKEW_S, SHORTEST_MS)
        figures[f"ready.{name}"] = [kill.ready_ms for kill in kills]
        say(f"kills: {len(kills)} {name}")
    return [
        time_row(f"{name}.p{share}", percentile(samples, share / 100), "ms")
        for name, samples in figures.items()
        for share in (50, 95)
    ]


def _measure(run: Path, standby: bool, count: int) -> tuple[list[Kill], list[Gap]]:
    with allocated_image() as image, start_ours(run, standby=standby) as hypervisor:
        disk = DiskConfig(target=str(image), vdev="vda", backend=DRIVER)
        config = GuestConfig(name=GUEST, memory=MEMORY_MIB, cpus=str(SYSTEM_CPU), disk=[disk], extra=EXTRA)
        hypervisor.client.create(config)
        load = _Load(hypervisor.client)
        load.start()
        chance = random.Random(SEED)
        try:
            load.wait_started()
            killer = _Killer(hypervisor, standby)
            kills = []
            for _ in range(count):
                time.sleep(chance.uniform(*QUIET_S))
                kills.append(killer.kill())
        finally:
            load.stop()
        return kills, load.gaps()


class _Killer:
    """Kills the active incarnation, each time only once the recovery before is complete."""

    def __init__(self, hypervisor: Ours, standby: bool) -> None:
        self._log = hypervisor.log
        self._standby = standby
        self._log.wait(is_event("vbd.connected"), "ring")
        if standby:
            self._wait_for_standby(self._active())

    def kill(self) -> Kill:
        before = self._active()
        pid = self._log.wait(is_event("domain.cloned", peer=before["peer"]), "clone")["pid"]
        since = len(self._log.events)
        sent_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        time.sleep(UNWATCHED_S)
        active = self._log.wait(is_event("driver.activated", name=DRIVER), "successor", since)
        steps = [active, *(self._wait_for(name, active["peer"]) for name in ("domain.started", "vbd.connected"))]
        if self._standby:
            self._wait_for_standby(active)
        return Kill(sent_ns, max(step["ns"] for step in steps))

    def _active(self) -> Event:
        self._log.read()
        return [event for event in self._log.events if is_event("driver.activated", name=DRIVER)(event)][-1]

    def _wait_for(self, event: str, peer: str) -> Event:
        key = "backend" if event == "vbd.connected" else "peer"
        return self._log.wait(is_event(event, **{key: peer}), event)

    def _wait_for_standby(self, active: Event) -> None:
        """A ring of its own is the last that a standby needs."""
        later = _generation(active["peer"])
        self._log.wait(
            lambda event: event["event"] == "vbd.connected" and _generation(event["backend"]) > later, "standby"
        )


def _generation(peer: str) -> int:
    return int(peer.split(".")[1])


class _Load(threading.Thread):
    """The load in the guest, beside the kills."""

    def __init__(self, client: Client) -> None:
        super().__init__(name="load")
        self._client = client
        self._command: Command | None = None
        self._output = bytearray()
        self._errors = bytearray()
        self._began_s = 0.0
        self._speaks = threading.Event()

    def run(self) -> None:
        with self._client.command(GUEST, [*LOAD, f"gaps_us={SHORTEST_MS * 1000:.0f}"]) as command:
            self._command = command
            pump(command, BytesSource(b""), self._took)
        self._speaks.set()

    def _took(self, stream: Stream, data: bytes) -> None:
        if stream is Stream.STDERR:
            self._errors += data
            return
        self._began_s = self._began_s or time.monotonic()
        self._output += data
        self._speaks.set()

    def wait_started(self) -> None:
        if not self._speaks.wait(STARTED_S) or not self._output:
            raise BenchError(f"the load in the guest did not start: {bytes(self._errors)!r}")

    def stop(self) -> None:
        """End it early; it reads back every block that it wrote, and reports."""
        if self._command is not None:
            self._command.signal(signal.SIGTERM)
        self.join(REPORT_S)

    def gaps(self) -> list[Gap]:
        """All gaps, by our clock. Raises BenchError for errors, wrong blocks, or no report."""
        if self._errors:
            raise BenchError(f"the load in the guest: {bytes(self._errors[:200])!r}")
        report: LoadReport = parse_report(bytes(self._output))
        ends = ((self._began_s + end_us / 1e6, us / 1e6) for end_us, us in report.gaps)
        return [Gap(end_s - length_s, end_s) for end_s, length_s in ends]
