"""A disk benchmark that is its own blkfront: no kernel, no file system, the ring alone between it and the driver.

It overwrites the disk, unless that has `access = "ro"`: then it only reads. `args` may give the seconds for each row.
"""

import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from domains.native import Disk, Domain

SECONDS = 1.0
KIB = 1024
HEAD = f"{'':14} {'size':>8} {'depth':>6} {'requests/s':>12} {'MB/s':>8} {'p50 µs':>8} {'p95 µs':>8} {'p99 µs':>8}"


class Job(NamedTuple):
    """What one row measures."""

    what: str
    size: int
    depth: int


JOBS = (
    Job("random read", 4 * KIB, 1),
    Job("random write", 4 * KIB, 1),
    Job("random read", 4 * KIB, 32),
    Job("random write", 4 * KIB, 32),
    Job("read", 1024 * KIB, 2),
    Job("write", 1024 * KIB, 2),
    Job("write + flush", 4 * KIB, 1),
)


async def main(domain: Domain) -> None:
    """Measure the first disk, row by row."""
    if not domain.disks:
        raise SystemExit("give it a disk: add a [[disk]] to its TOML")
    vdev, disk = next(iter(domain.disks.items()))
    seconds = float(domain.args[0]) if domain.args else SECONDS
    print(f"{vdev}: {disk.size >> 20} MiB, {'read only' if disk.read_only else 'overwritten'}")
    print(HEAD)
    for job in JOBS:
        if job.size <= disk.size and not (disk.read_only and "write" in job.what):
            print(await measure(disk, job, seconds))


async def measure(disk: Disk, job: Job, seconds: float) -> str:
    """One row: as many tasks as the job is deep, each with one request at a time."""
    latencies: list[float] = []
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(job.depth):
            nursery.start_soon(work, act_of(disk, job, number), began + seconds, latencies)
    took = time.perf_counter() - began
    p50, p95, p99 = (1e6 * at(latencies, share) for share in (0.5, 0.95, 0.99))
    rate = len(latencies) / took
    return (
        f"{job.what:14} {job.size // KIB:4} KiB {job.depth:6} {rate:12,.0f} {rate * job.size / 1e6:8,.1f} "
        f"{p50:8,.0f} {p95:8,.0f} {p99:8,.0f}"
    )


def act_of(disk: Disk, job: Job, number: int) -> Callable[[], Awaitable[object]]:
    """One request of this job, somewhere on the disk."""
    place = random.Random(number)
    blocks = disk.size // job.size
    data = place.randbytes(job.size)

    async def act() -> None:
        offset = place.randrange(blocks) * job.size
        if "read" in job.what:
            await disk.read(offset, job.size)
        else:
            await disk.write(offset, data)
        if "flush" in job.what:
            await disk.flush()

    return act


async def work(act: Callable[[], Awaitable[object]], until: float, latencies: list[float]) -> None:
    """Request after request, each timed."""
    now = time.perf_counter()
    while now < until:
        await act()
        before, now = now, time.perf_counter()
        latencies.append(now - before)


def at(latencies: list[float], share: float) -> float:
    """The latency that so large a share of all does not exceed."""
    return sorted(latencies)[min(len(latencies) - 1, int(share * len(latencies)))]
