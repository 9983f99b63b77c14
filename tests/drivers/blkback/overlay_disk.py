"""An overlay with a real storage daemon, asked one job after the other, or many at once, as a vbd's loop does."""

import os
import subprocess
import threading
from pathlib import Path
from typing import cast

from drivers.blkback.flusher import Job
from drivers.blkback.overlay import Files, Overlay, Report
from drivers.blkback.ring import BackRing
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["PROGRAM", "Disk", "Ring", "make_overlay"]

PROGRAM = "/usr/bin/qemu-storage-daemon"
POOL_BYTES = 4 << 20
DEADLINE_S = 30


class Ring:
    """A ring's pools, in memory of our own."""

    def __init__(self) -> None:
        self.in_view = memoryview(bytearray(POOL_BYTES))
        self.out_view = memoryview(bytearray(POOL_BYTES))


def make_overlay(folder: Path, base: bytes, size_bytes: int, *options: str) -> tuple[Path, Path]:
    """An image in qcow2 over a raw one with this content."""
    raw, image = folder / "base", folder / "image"
    raw.write_bytes(base)
    image.unlink(missing_ok=True)
    words = ["-f", "qcow2", "-F", "raw", "-b", str(raw), *(word for option in options for word in ("-o", option))]
    subprocess.run(["qemu-img", "create", "-q", *words, image, str(size_bytes)], check=True)
    return image, raw


class Disk:
    """One incarnation's view of an image."""

    def __init__(self, image: Path, beneath: Path | None, *, read_only: bool = False, program: str = PROGRAM) -> None:
        self.ring = Ring()
        self.refused = ""
        self.failed = ""
        self._answers: dict[int, int] = {}
        self._changed = threading.Condition()
        self._last = 0
        files = Files(
            os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC),
            None if beneath is None else os.open(beneath, os.O_RDONLY | os.O_CLOEXEC),
            read_only,
        )
        self.overlay = Overlay(program, files, Report(self._done, self._say_refused, self._say_failed))

    def submit(self, op: Op, offset: int, length: int, place: int = 0, ring: Ring | None = None) -> int:
        """Ask for something; its number."""
        self._last += 1
        self.overlay.submit(Job(cast(BackRing, ring or self.ring), self._last, op, offset, length, place))
        return self._last

    def status(self, number: int) -> int:
        """How it ended, once it has."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._answers or self.failed, DEADLINE_S)
            assert not self.failed, self.failed
            return self._answers[number]

    def answered(self) -> set[int]:
        """The numbers of what has ended by now."""
        with self._changed:
            return set(self._answers)

    def wait_failed(self) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: self.failed, DEADLINE_S)
            return self.failed

    def do(self, op: Op, offset: int = 0, length: int = 0) -> None:
        assert self.status(self.submit(op, offset, length)) == RspStatus.OK

    def write(self, offset: int, data: bytes) -> None:
        self.ring.out_view[: len(data)] = data
        self.do(Op.WRITE, offset, len(data))

    def read(self, offset: int, length: int) -> bytes:
        self.do(Op.READ, offset, length)
        return bytes(self.ring.in_view[:length])

    def close(self) -> None:
        """As a death: nothing that is under way is answered."""
        self.overlay.close()

    def _done(self, jobs: list[Job], status: int) -> None:
        with self._changed:
            for job in jobs:
                assert job.ident not in self._answers, "answered twice"
                self._answers[job.ident] = status
            self._changed.notify_all()

    def _say_refused(self, why: str) -> None:
        self.refused = why

    def _say_failed(self, why: str) -> None:
        with self._changed:
            self.failed = why
            self._changed.notify_all()
