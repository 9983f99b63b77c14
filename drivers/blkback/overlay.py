"""A vbd's disk in qcow2, in a thread of its own: requests to the storage daemon, its requests to the files, answers.

`Schedule` decides what is asked and answered when; here it is done.
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
from drivers.blkback.raw_export import RawExport
from drivers.blkback.schedule import SETTLE, Schedule
from kernel.abi.io.blkif import Op, RspStatus

__all__ = ["Files", "Overlay", "Report", "probe"]

STARTING = threading.Semaphore(2)
"""Daemons of this process that are on their way at once. Each takes some ten milliseconds of a CPU, and the data loop
has to turn meanwhile, whose heartbeat is looked at."""

_COMMANDS = {
    Op.READ: (Command.READ, 0),
    Op.WRITE: (Command.WRITE, 0),
    Op.DISCARD: (Command.TRIM, 0),
    Op.WRITE_ZEROES: (Command.WRITE_ZEROES, NO_HOLE),
    Op.ZERO_UNMAP: (Command.WRITE_ZEROES, 0),
}

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

    def turn(self, *, expecting: bool) -> None:
        """Wait for something, and see to it. Raises DaemonFailed where something is expected of the daemon, which waits
        for nothing of ours, and it stays silent."""
        patient = not expecting or any(export.waits_for_us for export in self.exports)
        poll = select.poll()
        for descriptor in self._handlers:
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(None if patient else ANSWER_S * 1000)
        if not ready:
            raise DaemonFailed(f"it neither answered nor asked for a byte for {ANSWER_S:g} s")
        for descriptor, _ in ready:
            self._handlers[descriptor]()

    def _answer(self) -> bytes:
        """What the monitor answers next; its greeting counts as one. Meanwhile the daemon gets its bytes."""
        while not self._said:
            self.turn(expecting=True)
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
    """Does the jobs of one vbd."""

    def __init__(self, program: str, files: Files, report: Report) -> None:
        """Takes over the descriptors. At most a ring's worth of jobs can wait."""
        self._program = program
        self._files = files
        self._report = report
        self._submitted: SimpleQueue[Job | None] = SimpleQueue()
        self._bell = _Bell()
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
                self._schedule = Schedule(session.open().piece_bytes)
            except BaseException:
                session.close()
                raise
        try:
            self._image, self._disk = session.exports[0], session.daemon.disk
            session.watch(self._disk.fileno(), self._take_reply)
            self._serve(session)
        finally:
            session.close()

    def _serve(self, session: _Session) -> None:
        try:
            while self._take_submitted():
                for handle, job in self._schedule.start():
                    self._ask(handle, job)
                if self._schedule.settle():
                    self._disk.sendall(ask(Command.FLUSH, 0, SETTLE, 0, 0))
                session.turn(expecting=self._schedule.expects)
        except (DaemonFailed, ProtocolError, OSError) as error:
            raise DaemonFailed(f"{error}; {session.daemon.why_it_ended()}") from error

    def _take_submitted(self) -> bool:
        """False where it is to close."""
        try:
            while (job := self._submitted.get_nowait()) is not None:
                self._schedule.add(job)
        except Empty:
            return True
        return False

    def _fail_all(self) -> None:
        while (job := self._submitted.get()) is not None:
            self._report.done([job], RspStatus.IO_ERROR)

    def _ask(self, handle: int, job: Job) -> None:
        command, flags = _COMMANDS[Op(job.op)]
        self._disk.sendall(ask(command, flags, handle, job.offset, job.length))
        if job.op == Op.WRITE:
            self._disk.sendall(job.data())

    def _take_reply(self) -> None:
        handle, error = read_reply(receive(self._disk, REPLY_BYTES))
        job = self._schedule.job(handle)
        if job is not None and job.op == Op.READ and not error:
            receive_into(self._disk, job.data())
        try:
            jobs = self._schedule.replied(handle, ok=not error)
        except LookupError as unknown:
            raise ProtocolError(f"it answers what it was not asked: {handle}") from unknown
        status = status_of(OSError(error, "")) if error else RspStatus.OK
        flushes = [job for job in jobs if job.op == Op.FLUSH]
        others = [job for job in jobs if job.op != Op.FLUSH]
        if others:
            self._report.done(others, status)
        if flushes:
            # Of what an earlier flush met that was the daemon's own, a guest hears now.
            self._report.done(flushes, status or self._image.take_failure())
