"""What may take long on an image, in a thread of its own for each vbd: flush and discard keep nobody else waiting."""

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue

from drivers.blkback.errors import status_of
from drivers.blkback.ring import BackRing
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["Flusher", "Job"]

_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Job:
    """A FLUSH or DISCARD that came by `ring`; `offset` and `length` in bytes."""

    ring: BackRing
    ident: int
    op: int
    offset: int
    length: int


class Flusher:
    """Does the jobs of one image in order. Flushes that wait together are done as one: it covers all that came before.

    At most a ring's worth of jobs can wait.
    """

    def __init__(self, image: int, done: Callable[[list[Job], int], None]) -> None:
        """Takes over the descriptor. `done` gets jobs and their status, on this thread."""
        self._image = image
        self._done = done
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        threading.Thread(target=self._run, name="flusher", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Do it after those submitted before."""
        self._jobs.put(job)

    def close(self) -> None:
        """Close the image when the jobs at hand are done. Does not wait."""
        self._jobs.put(None)

    def _run(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while not self._jobs.empty():
                batch.append(self._jobs.get())
            for op, group in groupby(batch, key=lambda job: None if job is None else job.op):
                if op is None:
                    os.close(self._image)
                    return
                self._do(op, [job for job in group if job is not None])

    def _do(self, op: int, jobs: list[Job]) -> None:
        if op == Op.FLUSH:
            self._done(jobs, self._flush())
            return
        for job in jobs:
            self._done([job], self._discard(job))

    def _flush(self) -> int:
        try:
            os.fdatasync(self._image)
        except OSError as error:
            return status_of(error)
        return RspStatus.OK

    def _discard(self, job: Job) -> int:
        if job.length and _fallocate(self._image, _PUNCH_HOLE, job.offset, job.length):
            return status_of(OSError(ctypes.get_errno(), "fallocate"))
        return RspStatus.OK
