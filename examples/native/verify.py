"""A writer that believes nothing: it proves that what a disk acknowledged is there, whatever its driver went through.

It overwrites the disk with records that say their place and generation, reads some of them again on the way, and all of
them at its end. `args`: how long it writes, in seconds, and how many requests at once. It ends as a crash if anything
that was acknowledged is not there. Kill its driver while it runs.
"""

import random
import struct
import zlib

import trio

from domains.native import Disk, Domain

RECORD_BYTES = 4096
HEADER = struct.Struct("<QQI")
"""Place, generation, checksum of the rest."""

READ_SHARE, FLUSH_SHARE = 0.3, 0.01
MAX_RECORDS = 4096


class Writer:
    """One task's records: nobody else writes them, so it knows what each must be."""

    def __init__(self, disk: Disk, number: int, records: range) -> None:
        self.disk = disk
        self.records = records
        self.acknowledged: dict[int, int] = {}
        """Place → the generation whose write was answered."""
        self.begun: dict[int, int] = {}
        """Place → the generation whose write was begun: after its end is cut off, either may be there."""
        self.writes = 0
        self._chance = random.Random(number)

    async def run(self) -> None:
        """Write, and look at what was written, until cancelled."""
        while True:
            chance = self._chance.random()
            if chance < READ_SHARE and self.acknowledged:
                await self.check(self._chance.choice(list(self.acknowledged)))
            elif chance > 1 - FLUSH_SHARE:
                await self.disk.flush()
            else:
                await self._write(self._chance.choice(self.records))

    async def _write(self, place: int) -> None:
        generation = self.begun.get(place, 0) + 1
        self.begun[place] = generation
        await self.disk.write(place * RECORD_BYTES, record(place, generation))
        self.acknowledged[place] = generation
        self.writes += 1

    async def check(self, place: int) -> None:
        """The record that was acknowledged is there, or the one that was on its way when we were stopped."""
        data = await self.disk.read(place * RECORD_BYTES, RECORD_BYTES)
        wanted = {record(place, self.acknowledged[place]), record(place, self.begun[place])}
        if data not in wanted:
            raise SystemExit(f"LOST: place {place} has {HEADER.unpack_from(data)}, not {self.acknowledged[place]}")


def record(place: int, generation: int) -> bytes:
    """All of a record follows from its place and generation."""
    body = random.Random(place << 32 | generation).randbytes(RECORD_BYTES - HEADER.size)
    return HEADER.pack(place, generation, zlib.crc32(body)) + body


async def main(domain: Domain) -> None:
    """Write for a while, or until a shutdown is asked for; then read everything back."""
    if not domain.disks:
        raise SystemExit("give it a disk: add a [[disk]] to its TOML")
    vdev, disk = next(iter(domain.disks.items()))
    seconds, depth = float(domain.args[0]), int(domain.args[1])
    records = min(MAX_RECORDS, disk.size // RECORD_BYTES)
    writers = [Writer(disk, number, range(number, records, depth)) for number in range(depth)]
    print(f"writes to {vdev}, {depth} requests at once, for {seconds:g} s")
    try:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for writer in writers:
                    nursery.start_soon(writer.run)
    finally:
        with trio.CancelScope(shield=True):
            await verify(disk, writers)


async def verify(disk: Disk, writers: list[Writer]) -> None:
    """Read back what was acknowledged, and tell what happened on the way."""
    await disk.flush()
    for writer in writers:
        for place in writer.acknowledged:
            await writer.check(place)
    stats = disk.stats()
    print(f"{sum(writer.writes for writer in writers):,} writes acknowledged")
    print(f"{sum(len(writer.acknowledged) for writer in writers):,} records verified, 0 lost")
    print(f"{len(stats.switches) - 1} drivers lost, {1000 * stats.longest_gap_s:.1f} ms at most without an answer")
