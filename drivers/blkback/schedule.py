"""In which order a storage daemon is given jobs, and when they are answered. Decides only.

The daemon does at once what it is given at once, and keeps in its memory what it allocates until it flushes. So what
overlaps in the image and may not change places is not given at once: ranges are alone, and nothing of a ring comes
before all of an earlier ring is done, since its frontend's successor asks for that again. And a write is answered after
a flush, which all that wait share, unless `Pieces` knows that it changes data alone.
"""

from collections import deque
from collections.abc import Iterator

from drivers.blkback.flusher import Job
from drivers.blkback.pieces import Pieces
from kernel.abi.io.blkif import Op

__all__ = ["IN_FLIGHT", "SETTLE", "Schedule"]

IN_FLIGHT = 16
"""As many as QEMU's server takes at once (MAX_NBD_REQUESTS): it always reads what is sent to it, and a send ends."""

SETTLE = 0
"""Handle of the flush for those that wait for one. Jobs have others."""

_RANGES = frozenset({Op.DISCARD, Op.WRITE_ZEROES, Op.ZERO_UNMAP})


class Schedule:
    """The jobs of one vbd, while one daemon serves it."""

    def __init__(self, piece_bytes: int) -> None:
        self._pieces = Pieces(piece_bytes)
        self._waiting: deque[Job] = deque()
        self._given: dict[int, Job] = {}
        self._unsettled: list[Job] = []
        self._settling: list[Job] = []
        self._together: Job | None = None
        self._last = SETTLE

    @property
    def expects(self) -> bool:
        """Whether an answer of the daemon's is due."""
        return bool(self._given or self._settling)

    def add(self, job: Job) -> None:
        """One more, after those added before."""
        self._waiting.append(job)

    def start(self) -> Iterator[tuple[int, Job]]:
        """Jobs to be given to the daemon now, each under a handle. One that moves nothing only waits for a flush."""
        while self._waiting and len(self._given) < IN_FLIGHT and self._may_start(self._waiting[0]):
            job = self._together = self._waiting.popleft()
            if job.op == Op.FLUSH or not job.length:
                self._unsettled.append(job)
                continue
            if job.op in _RANGES:
                self._pieces.forget(job.offset, job.length)
            self._last += 1
            self._given[self._last] = job
            yield self._last, job

    def settle(self) -> bool:
        """Whether the daemon is to be told now to flush, under `SETTLE`: for those that wait, if no flush is under
        way."""
        if self._settling or not self._unsettled:
            return False
        self._settling, self._unsettled = self._unsettled, []
        return True

    def job(self, handle: int) -> Job | None:
        """What the daemon has under this handle."""
        return self._given.get(handle)

    def replied(self, handle: int, *, ok: bool) -> list[Job]:
        """The daemon has answered. Jobs to be answered now, as that answer says. Raises LookupError for a handle that
        it does not have."""
        if handle == SETTLE:
            return self._settled(ok=ok)
        job = self._given.pop(handle)
        if not ok or job.op == Op.READ or self._pieces.knows(job.offset, job.length):
            return [job]
        self._unsettled.append(job)
        return []

    def _settled(self, *, ok: bool) -> list[Job]:
        if not self._settling:
            raise LookupError("no flush is under way")
        jobs, self._settling = self._settling, []
        if ok:
            self._pieces.learn((job.offset, job.length) for job in jobs if job.op == Op.WRITE and job.length)
        return jobs

    def _may_start(self, job: Job) -> bool:
        """Where nothing is under way; or with others of its ring, none of which is a range."""
        if not (self._given or self._unsettled or self._settling):
            return True
        last = self._together
        return last is not None and job.ring is last.ring and job.op not in _RANGES and last.op not in _RANGES
