"""Writing a core of a guest's memory, from within its jail: the hypervisor sees no byte of it.

A kernel that has ended has taken its memory along. So where a guest is to leave a core at its end, its actor opens the
memory while the kernel lives. What then is in the core is all but the kernel's own image: its text, and its variables,
of which only a core of a living guest has any.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trio
import trio.lowlevel

from domains.guests.core_elf import Memory, Region, elf_headers, find_memory, headers_bytes, mapped_again, parse_maps
from domains.guests.standing import look_at_system
from kernel.abi.log import Log
from kernel.abi.status import Refused, Status

__all__ = ["SystemMemory", "wait_for_memory"]

PIECE_BYTES = 1 << 20
"""Between two turns of the loop, which has the guest's devices to serve."""

LOOK_S = 0.05
"""Until the next look for the memory of a kernel that boots."""


@dataclass(slots=True)
class SystemMemory:
    """The memory of an operating system, open: it can be read when that has ended, too."""

    pid: int
    memory: Memory
    descriptor: int

    def __enter__(self) -> "SystemMemory":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        os.close(self.descriptor)

    async def write_core(self, core: int, log: Log) -> None:
        """Write a core into a new file. Refuses EIO where that takes no more."""
        regions = self._living()
        again = mapped_again(self.memory, regions)
        at = headers_bytes(1 + len(again))
        try:
            os.ftruncate(core, at + self.memory.end - self.memory.base)
            whole = await self._copy_image(core, at, regions, log)
            await self._copy_memory(core, at)
            os.pwrite(core, elf_headers(self.memory, again, whole=whole), 0)
        except OSError as error:
            raise Refused(Status.EIO, f"its core cannot be written: {error.strerror}: make room for it") from error

    async def _copy_memory(self, core: int, at: int) -> None:
        """What was ever written of it; the rest stays a hole."""
        size = self.memory.end - self.memory.base
        for start, end in _extents(self.descriptor, self.memory.start - self.memory.base, size):
            for offset in range(start, end, PIECE_BYTES):
                piece = os.pread(self.descriptor, min(PIECE_BYTES, end - offset), offset)
                _write_all(core, piece, at + offset)
                await trio.lowlevel.checkpoint()

    def _living(self) -> list[Region]:
        """What the kernel has mapped; nothing where it has ended, whoever has its pid now."""
        regions = _regions(self.pid)
        return regions if find_memory(regions) == self.memory else []

    async def _copy_image(self, core: int, at: int, regions: list[Region], log: Log) -> bool:
        """The kernel's own text and variables, out of its process. False where there is none to be read."""
        if not regions:
            log.info("core.without_kernel", why="its kernel has ended")
            return False
        try:
            process = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            log.info("core.without_kernel", why=error.strerror)
            return False
        try:
            for region in regions[: next(n for n, each in enumerate(regions) if each.start == self.memory.start)]:
                for address in range(region.start, region.end, PIECE_BYTES):
                    piece = os.pread(process, min(PIECE_BYTES, region.end - address), address)
                    _write_all(core, piece, at + address - self.memory.base)
                    await trio.lowlevel.checkpoint()
            return True
        finally:
            os.close(process)


def _system_memory() -> SystemMemory | None:
    """That of the operating system, a child of this process's parent; None where it has none yet, or none any more."""
    for pid, look in look_at_system().items():
        memory = find_memory(_regions(pid)) if look.parent == os.getppid() else None
        if memory is not None and (descriptor := _open(pid, memory.path)) is not None:
            return SystemMemory(pid, memory, descriptor)
    return None


async def wait_for_memory() -> SystemMemory:
    """The memory of the operating system, which may be about to boot."""
    while True:
        if (found := _system_memory()) is not None:
            return found
        await trio.sleep(LOOK_S)


def _regions(pid: int) -> list[Region]:
    """None of a process that has ended."""
    try:
        return parse_maps(Path(f"/proc/{pid}/maps").read_text())
    except OSError:
        return []


def _open(pid: int, path: str) -> int | None:
    """A descriptor of the file that this process has mapped, which has no name any more."""
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{number}"
            if os.readlink(link) == path:
                return os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    return None


def _extents(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file has data."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:
            return
        hole = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        if start < hole:
            yield start, hole
        start = max(hole, start)


def _write_all(core: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(core, left, at)
        left, at = left[written:], at + written
