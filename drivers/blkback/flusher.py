"""What may take long on an image, in a thread of its own for each vbd: flush and discard keep nobody else waiting."""

import ctypes
import ctypes.util
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from drivers.blkback.errors import status_of
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
    """A FLUSH or DISCARD of one ring; `offset` and `length` in bytes."""

    ident: int
    op: int
    offset: int
    length: int


class Flusher:
    """Does the jobs of one image in order. Flushes that wait together are done as one: it covers all that came before.

    At most a ring's worth of jobs can wait.
    """

    def __init__(self, image: int, done: Callable[[list[tuple[Job, int]]], None]) -> None:
        """Takes over the descriptor. `done` gets jobs and statuses, on this thread."""
        self._image = image
        self._done = done
        self._jobs: deque[Job | None] = deque()
        self._waiting = threading.Semaphore(0)
        threading.Thread(target=self._run, name="flusher", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Do it after those submitted before."""
        self._jobs.append(job)
        self._waiting.release()

    def close(self) -> None:
        """Close the image when the jobs at hand are done. Does not wait."""
        self._jobs.append(None)
        self._waiting.release()

    def _run(self) -> None:
        while True:
            self._waiting.acquire()
            job = self._jobs.popleft()
            if job is None:
                os.close(self._image)
                return
            if job.op == Op.DISCARD:
                self._done([(job, self._discard(job))])
                continue
            flushes = [job]
            while self._jobs and self._jobs[0] is not None and self._jobs[0].op == Op.FLUSH:
                self._waiting.acquire()
                flushes.append(self._jobs.popleft())  # type: ignore[arg-type]
            status = self._flush()
            self._done([(flush, status) for flush in flushes])

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
