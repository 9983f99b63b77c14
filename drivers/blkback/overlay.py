"""A vbd's disk in qcow2, in a thread of its own: requests to the storage daemon, its requests to the files, answers.

A write is answered when it will be found by a daemon that knows nothing but the files: after a flush, or at once where
`Pieces` knows that it changes data alone. Flushes are shared by all that wait for one.
"""

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from drivers.blkback.daemon import ANSWER_S, Daemon, DaemonFailed, ImageFacts, ImageRefused, facts_of
from drivers.blkback.errors import status_of
from drivers.blkback.flusher import Done, Job
from drivers.blkback.nbd import (
    NO_HOLE,
    REPLY_BYTES,
    Command,
    ProtocolError,
    ask,
    negotiate,
    read_reply,
    receive,
    receive_into,
)
from drivers.blkback.pieces import Pieces
from drivers.blkback.raw_export import RawExport
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["Files", "Overlay", "Report", "probe"]

IN_FLIGHT = 16
"""As many as QEMU's server takes at once (MAX_NBD_REQUESTS): it always reads what is sent to it, and a send ends."""

STARTING = threading.Semaphore(2)
"""Daemons of this process that are on their way at once. Each takes some ten milliseconds of a CPU, and the data loop
has to turn meanwhile, whose heartbeat is looked at."""

SETTLE = 0
"""Handle of the flush for those that wait for one. Others count from 1."""

_COMMANDS = {
    Op.READ: (Command.READ, 0),
    Op.WRITE: (Command.WRITE, 0),
    Op.DISCARD: (Command.TRIM, 0),
    Op.WRITE_ZEROES: (Command.WRITE_ZEROES, NO_HOLE),
    Op.ZERO_UNMAP: (Command.WRITE_ZEROES, 0),
}
_RANGES = frozenset({Op.DISCARD, Op.WRITE_ZEROES, Op.ZERO_UNMAP})


@dataclass(frozen=True, slots=True)
class Files:
    """Descriptors of an image and of what lies beneath it."""

    image: int
    beneath: int | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What an overlay tells of itself, from its thread. `done`: jobs and their status. `refused`: the daemon does not
    open the image; every job fails. `failed`: nothing more can be done; the jobs in flight are not answered."""

    done: Done
    refused: Callable[[str], None]
    failed: Callable[[str], None]


class _Bell:
    """Wakes a session. May be rung by anybody at any time, also when it is closed."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def ring(self) -> None:
        """From any thread."""
        with self._lock:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def close(self) -> None:
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = -1


class _Session:
    """A daemon and the exports of its files. On one thread."""

    def __init__(self, program: str, files: Files, bell: _Bell) -> None:
        """Start it. Takes the descriptors over. Raises DaemonFailed."""
        self._bell = bell
        given = [(files.image, files.read_only)] + ([(files.beneath, True)] if files.beneath is not None else [])
        self.exports: list[RawExport] = []
        theirs: list[socket.socket] = []
        for file, read_only in given:
            ours, other = socket.socketpair()
            ours.settimeout(ANSWER_S)
            self.exports.append(RawExport(ours, file, read_only=read_only, wake=bell.ring))
            theirs.append(other)
        try:
            beneath = theirs[1] if len(theirs) > 1 else None
            self.daemon = Daemon(program, theirs[0], beneath, read_only=files.read_only)
        except DaemonFailed:
            self._close_files()
            raise
        finally:
            for connection in theirs:
                connection.close()
        self._said: deque[bytes] = deque()
        self._handlers: dict[int, Callable[[], None]] = {}
        self.watch(bell.descriptor, self._rung)
        self.watch(self.daemon.errors, self._read_errors)
        self.watch(self.daemon.monitor.fileno(), self._hear)
        for export in self.exports:
            self.watch(export.connection.fileno(), export.serve)

    def close(self) -> None:
        """End the daemon, wait for that, and give up the files."""
        self.daemon.close()
        self._close_files()

    def open(self) -> ImageFacts:
        """Have the image opened and exported; what the daemon found. Raises ImageRefused, DaemonFailed."""
        try:
            for export in self.exports:
                export.offer()
            self._answer()
            self.daemon.tell("qmp_capabilities")
            self._answer()
            self.daemon.tell("query-named-block-nodes", flat=True)
            facts = facts_of(self._answer())
            self.daemon.disk.settimeout(ANSWER_S)
            size = negotiate(self.daemon.disk)
        except (OSError, ProtocolError, DaemonFailed) as error:
            ended = self.daemon.why_it_ended()
            raise ended if isinstance(ended, ImageRefused) else DaemonFailed(f"{error}; {ended}") from error
        if size != facts.size_bytes:
            raise DaemonFailed(f"it exports {size} bytes of {facts.size_bytes}")
        return facts

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` from `turn` when the descriptor is readable, or has ended."""
        self._handlers[descriptor] = handler

    def turn(self, patience_s: float | None) -> bool:
        """Wait for something, and see to it. False where nothing came."""
        poll = select.poll()
        for descriptor in self._handlers:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(None if patience_s is None else patience_s * 1000)
        for descriptor, _ in ready:
            self._handlers[descriptor]()
        return bool(ready)

    def _answer(self) -> bytes:
        """What the monitor answers next; its greeting counts as one. Meanwhile the daemon gets its bytes."""
        while not self._said:
            if not self.turn(ANSWER_S):
                raise DaemonFailed(f"it said nothing for {ANSWER_S:g} s")
        return self._said.popleft()

    def _rung(self) -> None:
        os.eventfd_read(self._bell.descriptor)
        for export in self.exports:
            export.answer_slow()

    def _hear(self) -> None:
        for said in self.daemon.heard():
            if said.error is not None:
                raise DaemonFailed(f"it refuses an order: {said.error.desc}")
            if not said.event:
                self._said.append(bytes(said.result))

    def _read_errors(self) -> None:
        if not self.daemon.read_errors():
            del self._handlers[self.daemon.errors]

    def _close_files(self) -> None:
        for export in self.exports:
            export.close()


def probe(program: str, image: int) -> ImageFacts:
    """Look at an image, with nothing beneath it. Takes the descriptor over. Raises ImageRefused, DaemonFailed."""
    bell = _Bell()
    try:
        session = _Session(program, Files(image, None, read_only=True), bell)
        try:
            return session.open()
        finally:
            session.close()
    finally:
        bell.close()


class Overlay:
    """Does the jobs of one vbd. What overlaps in the image is done in the order in which the guest may expect it:
    ranges alone, and nothing of a ring before all of an earlier ring is done, which is asked for again on that ring."""

    def __init__(self, program: str, files: Files, report: Report) -> None:
        """Takes over the descriptors. At most a ring's worth of jobs can wait."""
        self._program = program
        self._files = files
        self._report = report
        self._submitted: SimpleQueue[Job | None] = SimpleQueue()
        self._bell = _Bell()
        self._waiting: deque[Job] = deque()
        self._in_flight: dict[int, Job] = {}
        self._unsettled: list[Job] = []
        self._settling: list[Job] = []
        self._last_handle = 0
        self._together: Job | None = None
        threading.Thread(target=self._run, name="overlay", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Do it. From any thread."""
        self._submitted.put(job)
        self._bell.ring()

    def close(self) -> None:
        """End the daemon, and close the files. What is in flight is not answered. Does not wait. From any thread."""
        self._submitted.put(None)
        self._bell.ring()

    # On the overlay's thread

    def _run(self) -> None:
        try:
            self._live()
        except ImageRefused as refusal:
            self._report.refused(str(refusal))
            self._fail_all()
        except (DaemonFailed, ProtocolError, OSError) as error:
            self._report.failed(str(error))
        finally:
            self._bell.close()

    def _live(self) -> None:
        with STARTING:
            session = _Session(self._program, self._files, self._bell)
            try:
                self._pieces = Pieces(session.open().piece_bytes)
            except BaseException:
                session.close()
                raise
        try:
            self._image, self._disk = session.exports[0], session.daemon.disk
            session.watch(self._disk.fileno(), self._replied)
            self._serve(session)
        finally:
            session.close()

    def _serve(self, session: _Session) -> None:
        try:
            while self._take_submitted():
                self._start_what_may()
                busy = self._in_flight or self._settling
                if not session.turn(ANSWER_S if busy else None):
                    raise DaemonFailed(f"it neither answered nor asked for a byte for {ANSWER_S:g} s")
        except (DaemonFailed, ProtocolError, OSError) as error:
            raise DaemonFailed(f"{error}; {session.daemon.why_it_ended()}") from error

    def _take_submitted(self) -> bool:
        """False where it is to close."""
        try:
            while (job := self._submitted.get_nowait()) is not None:
                self._waiting.append(job)
        except Empty:
            return True
        return False

    def _fail_all(self) -> None:
        while (job := self._submitted.get()) is not None:
            self._report.done([job], RspStatus.IO_ERROR)

    def _start_what_may(self) -> None:
        while self._waiting and len(self._in_flight) < IN_FLIGHT and self._may_start(self._waiting[0]):
            self._start(self._waiting.popleft())
        if self._unsettled and not self._settling:
            self._settling, self._unsettled = self._unsettled, []
            self._disk.sendall(ask(Command.FLUSH, 0, SETTLE, 0, 0))

    def _may_start(self, job: Job) -> bool:
        """Where nothing is under way; or with others of its ring, none of which is a range."""
        if not (self._in_flight or self._unsettled or self._settling):
            return True
        ours = self._together
        return ours is not None and job.ring is ours.ring and job.op not in _RANGES and ours.op not in _RANGES

    def _start(self, job: Job) -> None:
        self._together = job
        if job.op == Op.FLUSH:
            self._unsettled.append(job)
            return
        if not job.length:
            self._report.done([job], RspStatus.OK)
            return
        if job.op in _RANGES:
            self._pieces.forget(job.offset, job.length)
        command, flags = _COMMANDS[Op(job.op)]
        self._last_handle += 1
        header = ask(command, flags, self._last_handle, job.offset, job.length)
        self._in_flight[self._last_handle] = job
        self._disk.sendall(header)
        if job.op == Op.WRITE:
            self._disk.sendall(job.data())

    def _replied(self) -> None:
        handle, error = read_reply(receive(self._disk, REPLY_BYTES))
        status = status_of(OSError(error, "")) if error else RspStatus.OK
        if handle == SETTLE and self._settling:
            self._settled(status)
            return
        job = self._in_flight.pop(handle, None)
        if job is None:
            raise ProtocolError(f"it answers a request that it was not given: {handle}")
        if job.op == Op.READ and not error:
            receive_into(self._disk, job.data())
        if job.op == Op.READ or error or (job.op == Op.WRITE and self._pieces.knows(job.offset, job.length)):
            self._report.done([job], status)
        else:
            self._unsettled.append(job)

    def _settled(self, status: int) -> None:
        """A flush is answered. One of the guest's is told besides of what an earlier flush met that was not its own."""
        jobs, self._settling = self._settling, []
        if not status:
            self._pieces.learn((job.offset, job.length) for job in jobs if job.op == Op.WRITE)
        for flushes in (False, True):
            group = [job for job in jobs if (job.op == Op.FLUSH) is flushes]
            if group:
                failure = self._image.take_failure() if flushes else RspStatus.OK
                self._report.done(group, status or failure)
