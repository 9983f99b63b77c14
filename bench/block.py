"""Rows of the block path: the same load in the same guest, served by our isolated driver and by the peer."""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.bare import BareGuest, start_bare
from bench.effort import Effort
from bench.load import BenchError, LoadReport, parse_report
from bench.ours import DRIVER, start_ours
from bench.peer import start_peer
from bench.placement import SERVER_CPU, SYSTEM_CPU
from bench.rows import Row, latency_row, rate_row
from domains.guests.uml import UmlDisk
from kernel.abi.guest_config import DiskConfig, GuestConfig

__all__ = ["JOBS", "Job", "allocated_image", "measure_block"]

GUEST = "bench"
MEMORY_MIB = 128
IMAGE_BYTES = 256 << 20
EXTRA = "nohz=off"
"""A guest that never stops its tick finds a completion whose interrupt it lost within 10 ms; the peer never
signals again, so without this it alone would suffer."""

CACHE = "/sys/block/vda/queue/write_cache"
WARM_UP_S = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One row's load. `figure` of a report is what is compared, in `unit`; `rate`: more is better."""

    name: str
    op: str
    order: str
    size: str
    depth: int

    @property
    def rate(self) -> bool:
        """At depth 1 latencies are compared, so that a stall of either side does not decide."""
        return self.depth > 1 or self.op == "fsync"

    @property
    def unit(self) -> str:
        return "µs" if not self.rate else "MB/s" if self.size == "1m" else "1/s"

    def figure(self, report: LoadReport) -> float:
        return report.p50_us if not self.rate else report.mb_s if self.size == "1m" else report.iops

    def argv(self, seconds: float) -> list[str]:
        words = (f"op={self.op}", f"order={self.order}", f"size={self.size}", f"depth={self.depth}")
        return ["load", "/dev/vda", *words, f"seconds={seconds:g}"]


JOBS = (
    Job("block.randread.4k.qd1", "read", "random", "4k", 1),
    Job("block.randwrite.4k.qd1", "write", "random", "4k", 1),
    Job("block.randread.4k.qd32", "read", "random", "4k", 32),
    Job("block.randwrite.4k.qd32", "write", "random", "4k", 32),
    Job("block.read.1m.qd1", "read", "sequential", "1m", 1),
    Job("block.write.1m.qd1", "write", "sequential", "1m", 1),
    Job("block.read.1m.qd4", "read", "sequential", "1m", 4),
    Job("block.write.1m.qd4", "write", "sequential", "1m", 4),
    Job("block.fsync", "fsync", "random", "4k", 1),
)

Runner = Callable[[list[str]], bytes]
"""Runs a command in one of the two guests."""


def measure_block(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. Raises BenchError."""
    ours: dict[str, list[LoadReport]] = {job.name: [] for job in JOBS}
    peers: dict[str, list[LoadReport]] = {job.name: [] for job in JOBS}
    for number in range(1, effort.rounds + 1):
        with _both(run / f"block-{number}") as (our_guest, peers_guest):
            sides = [(our_guest, ours), (peers_guest, peers)]
            for job in JOBS:
                for runner, reports in sides if number % 2 else reversed(sides):
                    reports[job.name].append(_run(runner, job, effort.job_s))
        say(f"block: round {number} of {effort.rounds}")
    return [*(_row(job, ours[job.name], peers[job.name]) for job in JOBS), _stall_row(ours, peers)]


def _run(runner: Runner, job: Job, seconds: float) -> LoadReport:
    runner(job.argv(min(WARM_UP_S, seconds)))
    return parse_report(runner(job.argv(seconds)))


def _row(job: Job, ours: list[LoadReport], peers: list[LoadReport]) -> Row:
    make = rate_row if job.rate else latency_row
    our_figure, peers_figure = (statistics.median(map(job.figure, reports)) for reports in (ours, peers))
    return make(job.name, our_figure, peers_figure, job.unit)


def _stall_row(ours: dict[str, list[LoadReport]], peers: dict[str, list[LoadReport]]) -> Row:
    """The longest time without a completion in any job of any round."""
    our_ms, peers_ms = (max(r.gap_us for reports in side.values() for r in reports) / 1000 for side in (ours, peers))
    return latency_row("block.stall.max", our_ms, peers_ms, "ms")


@contextmanager
def _both(run: Path) -> Iterator[tuple[Runner, Runner]]:
    """Both guests up, so that what one job costs is compared with the next and not with one a minute later."""
    with ExitStack() as stack:
        ours = stack.enter_context(_our_guest(run))
        peer = stack.enter_context(_peers_guest(run))
        _assert_writes_back("our guest", ours)
        _assert_writes_back("the peer's guest", peer)
        yield ours, peer


@contextmanager
def _our_guest(run: Path) -> Iterator[Runner]:
    with start_ours(run, standby=True, driver_cpu=SERVER_CPU) as hypervisor, allocated_image() as image:
        disk = DiskConfig(target=str(image), vdev="vda", backend=DRIVER)
        hypervisor.client.create(
            GuestConfig(name=GUEST, memory=MEMORY_MIB, cpus=str(SYSTEM_CPU), disk=[disk], extra=EXTRA)
        )
        yield lambda argv: hypervisor.output_of(GUEST, argv)


@contextmanager
def _peers_guest(run: Path) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="triovisor-bench.") as folder, allocated_image() as image:
        socket_path = Path(folder) / "vda.sock"
        disks = (UmlDisk(str(socket_path), 0),)
        with (
            start_peer(image, socket_path, SERVER_CPU),
            start_bare(MEMORY_MIB, SYSTEM_CPU, disks, (EXTRA,)) as guest,
        ):
            guest.wait_ready()
            _switch_cache_on(guest)
            yield guest.output_of


def _switch_cache_on(guest: BareGuest) -> None:
    """The peer says that its cache is off until the guest switches it on; then it would never be sent a flush."""
    guest.output_of(["sh", "-c", "echo write back > /sys/block/vda/cache_type"])


def _assert_writes_back(whose: str, runner: Runner) -> None:
    shown = runner(["cat", CACHE]).decode().strip()
    if shown != "write back":
        raise BenchError(f"{whose} shows write_cache = {shown!r}: without a write-back cache there are no flushes")


@contextmanager
def allocated_image() -> Iterator[Path]:
    """An image in memory (tmpfs), all of it there, so that no one's first write pays for pages."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="triovisor-bench.", suffix=".img") as file:
        os.posix_fallocate(file.fileno(), 0, IMAGE_BYTES)
        yield Path(file.name)
