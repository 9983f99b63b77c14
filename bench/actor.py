"""Rows of a guest's own recovery: what it sees, under load, of kill -9 of its actor, the process of its devices."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bench.block import allocated_image
from bench.effort import Effort
from bench.events import is_event
from bench.figures import Gap, Window, gaps_of_kills, percentile
from bench.kills import EXTRA, GUEST, LOAD, MEMORY_MIB, QUIET_S, SEED, SHORTEST_MS, SKEW_S, UNWATCHED_S
from bench.load import BenchError, parse_report
from bench.ours import DRIVER, Ours, start_ours
from bench.placement import SYSTEM_CPU
from bench.rows import Row, time_row
from kernel.abi.guest_config import DiskConfig, GuestConfig

__all__ = ["measure_actor"]

REPORT, ERRORS = "/tmp/report", "/tmp/errors"
REPORT_S = 60.0

START = f"setsid {' '.join(LOAD)} gaps_us={SHORTEST_MS * 1000:.0f} < /dev/null > {REPORT} 2> {ERRORS} &"
"""The load is the guest's own: a command of `tv exec` ends with its actor."""


def measure_actor(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. Raises BenchError when the guest saw an error or a wrong block."""
    with allocated_image() as image, start_ours(run / "actor", standby=False) as hypervisor:
        disk = DiskConfig(target=str(image), vdev="vda", backend=DRIVER)
        hypervisor.client.create(
            GuestConfig(name=GUEST, memory=MEMORY_MIB, cpus=str(SYSTEM_CPU), disk=[disk], extra=EXTRA)
        )
        hypervisor.output_of(GUEST, ["sh", "-c", f"{START} while [ ! -s {REPORT} ]; do :; done"])
        began_s = time.monotonic()
        chance = random.Random(SEED)
        kills = []
        for _ in range(effort.kills):
            time.sleep(chance.uniform(*QUIET_S))
            kills.append(_kill(hypervisor))
        gaps = _gaps(hypervisor, began_s)
    say(f"actor: {len(kills)} kills")
    samples = gaps_of_kills(kills, gaps, SKEW_S, SHORTEST_MS)
    return [time_row(f"actor.gap.p{share}", percentile(samples, share / 100), "ms") for share in (50, 95)]


def _kill(hypervisor: Ours) -> Window:
    """Kill the actor, and wait until its successor's ring is mapped."""
    reaper = hypervisor.log.wait(is_event("domain.cloned", name=GUEST), "clone")["pid"]
    actor = _actor_of(reaper)
    hypervisor.log.read()
    since = len(hypervisor.log.events)
    sent_s = time.monotonic()
    os.kill(actor, signal.SIGKILL)
    time.sleep(UNWATCHED_S)
    hypervisor.log.wait(is_event("domain.soft_reset", name=GUEST), "successor", since)
    connected = hypervisor.log.wait(is_event("vbd.connected"), "ring", since)
    return Window(sent_s, connected["ns"] / 1e9)


def _actor_of(reaper: int) -> int:
    """The reaper's child that is of its own program, and not the undertaker. Raises BenchError for none."""
    program = Path(f"/proc/{reaper}/cmdline").read_bytes()
    for child in map(int, Path(f"/proc/{reaper}/task/{reaper}/children").read_text().split()):
        own = Path(f"/proc/{child}/cmdline").read_bytes() == program
        if own and Path(f"/proc/{child}/comm").read_text() != "undertaker\n":
            return child
    raise BenchError(f"process {reaper} has no child that is the guest's actor")


def _gaps(hypervisor: Ours, began_s: float) -> list[Gap]:
    """End the load; it reads back every block that it wrote, and reports. All gaps, by our clock."""
    hypervisor.output_of(GUEST, ["killall", "-TERM", "load"])
    deadline = time.monotonic() + REPORT_S
    while b"}" not in (output := hypervisor.output_of(GUEST, ["cat", REPORT])):
        if time.monotonic() > deadline:
            raise BenchError(f"the load in the guest: {hypervisor.output_of(GUEST, ['cat', ERRORS])!r}")
        time.sleep(0.1)
    ends = ((began_s + end_us / 1e6, us / 1e6) for end_us, us in parse_report(output).gaps)
    return [Gap(end_s - length_s, end_s) for end_s, length_s in ends]
