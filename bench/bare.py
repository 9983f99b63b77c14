"""The peer's guest: linux.uml with the same line and ramdisk, without jail and without hypervisor."""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from bench.load import BenchError
from domains.guests.agent import AgentSession
from domains.guests.agent_events import Event, Exited, Failed, Lost, Output, Ready
from domains.guests.uml import UmlDisk, UmlSpec, command_line, prepare_to_exec
from triovisor.provision.files import guest_files

__all__ = ["BareGuest", "end_with_parent", "start_bare"]

READ_BYTES = 65536
BOOT_S, COMMAND_S = 30.0, 120.0
PR_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None).prctl


def end_with_parent() -> None:
    """In a child, before exec: die with the bench, however it dies."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class BareGuest:
    """A running guest. `started_ns` was taken before its process was made."""

    def __init__(self, memory_mib: int, cpu: int, disks: tuple[UmlDisk, ...], extra: tuple[str, ...]) -> None:
        files = guest_files()
        self._folder = tempfile.mkdtemp(prefix="triovisor-bench.")
        self._console, consoles_end = socket.socketpair()
        self._agent, agents_end = socket.socketpair()
        self._session = AgentSession()
        spec = UmlSpec(
            memory_mib=memory_mib,
            initrd=str(files.initrd),
            console_fd=consoles_end.fileno(),
            agent_fd=agents_end.fileno(),
            uml_dir=self._folder,
            umid="bare",
            hostname="bare",
            lpj=files.lpj or 0,
            disks=disks,
            extra=extra,
        )
        self.started_ns = time.monotonic_ns()
        with consoles_end, agents_end:
            self._process = _exec(str(files.kernel), spec, cpu)

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def wait_ready(self) -> int:
        """Wait for the agent's first word; when it came, in ns of `time.monotonic_ns`. Raises BenchError."""
        deadline = time.monotonic() + BOOT_S
        while True:
            for event in self._next_events(deadline):
                if isinstance(event, Ready):
                    return time.monotonic_ns()

    def output_of(self, argv: Sequence[str]) -> bytes:
        """What a command prints. Raises BenchError where it fails."""
        command = self._session.start([word.encode() for word in argv])
        self._send()
        deadline = time.monotonic() + COMMAND_S
        output = bytearray()
        while True:
            for event in self._next_events(deadline):
                match event:
                    case Output(stream=stream, data=data):
                        output += data
                        self._session.taken(command, stream, len(data))
                        self._send()
                    case Exited(status=0):
                        return bytes(output)
                    case Exited() | Failed() | Lost():
                        raise BenchError(f"{' '.join(argv)} in the peer's guest: {event} {bytes(output)!r}")

    def end(self) -> None:
        """Kill it and its helpers, which are one process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._console.close()
        self._agent.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _next_events(self, deadline: float) -> list[Event]:
        """The agent's next events, maybe none. The console is drained, or the guest would wait for it."""
        left_s = deadline - time.monotonic()
        ready, _, _ = select.select([self._agent, self._console], [], [], max(0.0, left_s))
        if not ready:
            raise BenchError("the peer's guest says nothing")
        if self._console in ready:
            self._console.recv(READ_BYTES)
        if self._agent not in ready:
            return []
        data = self._agent.recv(READ_BYTES)
        events = self._session.receive(data)
        self._send()
        if not data:
            raise BenchError("the peer's guest has ended")
        return events

    def _send(self) -> None:
        self._agent.sendall(self._session.take_outgoing())


def _exec(kernel: str, spec: UmlSpec, cpu: int) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        end_with_parent()
        os.sched_setaffinity(0, {cpu})
        prepare_to_exec()

    return subprocess.Popen(
        command_line(spec),
        executable=kernel,
        pass_fds=(spec.console_fd, spec.agent_fd),
        preexec_fn=prepare,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"HOME": "/tmp", "TMPDIR": "/dev/shm", "PATH": "/usr/bin:/bin"},
    )


@contextmanager
def start_bare(
    memory_mib: int, cpu: int, disks: tuple[UmlDisk, ...] = (), extra: tuple[str, ...] = ()
) -> Iterator[BareGuest]:
    """Start a guest, pinned to a CPU; it is killed at the end."""
    guest = BareGuest(memory_mib, cpu, disks, extra)
    try:
        yield guest
    finally:
        guest.end()
