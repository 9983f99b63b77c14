"""What may take long on an image, in a thread of its own for each vbd: flushes, discards and zeros keep nobody else
waiting."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue
from typing import Protocol

from drivers.blkback.errors import status_of
from drivers.blkback.ring import BackRing
from drivers.blkback.zeroes import discard, write_zeroes
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["Done", "Flusher", "Job", "Jobs"]


@dataclass(frozen=True, slots=True)
class Job:
    """A request, as it came by `ring` or from a storage daemon; `offset`, `length` and `place` in bytes."""

    ring: BackRing | None
    ident: int
    op: int
    offset: int
    length: int
    place: int = 0

    def data(self) -> memoryview:
        """Of a transfer: where its data is, or is to be. Of a ring that is gone, nowhere: memory of no consequence."""
        assert self.ring is not None
        try:
            view = self.ring.in_view if self.op == Op.READ else self.ring.out_view
            return view[self.place : self.place + self.length]
        except ValueError:
            return memoryview(bytearray(self.length))


Done = Callable[[list[Job], int], None]
"""Gets jobs and their status, on whichever thread did them."""


class Jobs(Protocol):
    """Who does jobs, beside the data loop. Neither call waits."""

    def submit(self, job: Job) -> None:
        """Do it."""

    def close(self) -> None:
        """Give back what is held."""


class Flusher:
    """Does the jobs of one image in order. Flushes that wait together are done as one: it covers all that came before.

    At most a ring's worth of jobs can wait.
    """

    def __init__(self, image: int, done: Done) -> None:
        """Takes over the descriptor. `done` is called on this thread."""
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
            self._done(jobs, self._status(jobs[0]))
            return
        for job in jobs:
            self._done([job], self._status(job))

    def _status(self, job: Job) -> int:
        """Do a job; what its answer is."""
        try:
            if job.op == Op.FLUSH:
                os.fdatasync(self._image)
            elif job.op == Op.DISCARD:
                discard(self._image, job.offset, job.length)
            else:
                write_zeroes(self._image, job.offset, job.length, unmap=job.op == Op.ZERO_UNMAP)
        except OSError as error:
            return status_of(error)
        return RspStatus.OK
