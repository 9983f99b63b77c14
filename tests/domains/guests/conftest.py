"""A real guest, booted without a jail."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from domains.guests.agent_events import Exited, Failed, Lost
from domains.guests.agent_frames import OutputStream
from domains.guests.uml import GuestExit, UmlSpec, classify_exit, command_line, prepare_to_exec
from tests.domains.guests.agent_link import AgentLink, Command
from triovisor.provision import guest_files

DEADLINE_S = 60
"""For a whole test: far beyond what a loaded machine needs."""


class BootedGuest:
    """A guest that runs, its agent's link, and what its console said."""

    def __init__(self, process: subprocess.Popen[bytes], link: AgentLink) -> None:
        self.process = process
        self.link = link
        self.console = bytearray()
        self.console_closed = trio.Event()

    async def run(self, *argv: str | bytes, given: bytes = b"", **start) -> tuple[bytes, bytes, Exited | Failed | Lost]:
        """Run a command to its end: stdout, stderr, and the end."""
        words = [word if isinstance(word, bytes) else word.encode() for word in argv]
        return await collect(self.link.start(words, **start), given)

    async def ended(self) -> GuestExit:
        """Wait for the guest's end. Its console has been read to the end by then."""
        status = await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        await self.console_closed.wait()
        return classify_exit(status, bytes(self.console))

    async def read_console(self, line: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await line.receive_some(65536):
                self.console += data
        self.console_closed.set()


async def collect(command: Command, given: bytes = b"") -> tuple[bytes, bytes, Exited | Failed | Lost]:
    taken = {OutputStream.STDOUT: bytearray(), OutputStream.STDERR: bytearray()}

    async def give() -> None:
        await command.send_input(given)
        command.end_input()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give)
        while (output := await command.receive()) is not None:
            taken[output[0]] += output[1]
    assert command.end is not None
    return bytes(taken[OutputStream.STDOUT]), bytes(taken[OutputStream.STDERR]), command.end


def start_kernel(spec: UmlSpec, *ends: socket.socket) -> subprocess.Popen[bytes]:
    """In its own process group, which its helpers share."""
    return subprocess.Popen(
        command_line(spec),
        executable=guest_files().kernel,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[end.fileno() for end in ends],
        preexec_fn=prepare_to_exec,
        start_new_session=True,
    )


@contextlib.asynccontextmanager
async def boot(folder: Path, *, memory_mib: int = 64, fast: bool = True, **words) -> AsyncIterator[BootedGuest]:
    files = guest_files()
    console, guests_console = socket.socketpair()
    agent, guests_agent = socket.socketpair()
    spec = UmlSpec(
        memory_mib=memory_mib,
        initrd=str(files.initrd),
        console_fd=guests_console.fileno(),
        agent_fd=guests_agent.fileno(),
        uml_dir=str(folder),
        umid="guest",
        lpj=files.lpj or 0,
        fast=fast,
        **words,
    )
    process = start_kernel(spec, guests_console, guests_agent)
    guests_console.close()
    guests_agent.close()
    line = trio.SocketStream(trio.socket.from_stdlib_socket(agent))
    screen = trio.SocketStream(trio.socket.from_stdlib_socket(console))
    link = AgentLink(line)
    guest = BootedGuest(process, link)
    try:
        with trio.fail_after(DEADLINE_S):
            async with line, screen, trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                nursery.start_soon(guest.read_console, screen)
                await link.wait_ready()
                yield guest
                nursery.cancel_scope.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
async def guest(tmp_path) -> AsyncIterator[BootedGuest]:
    async with boot(tmp_path) as booted:
        yield booted


@pytest.fixture
def boot_guest(tmp_path):
    """`boot` with a folder of the test's own."""
    return lambda **words: boot(tmp_path, **words)


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 1, "a thread waits for a guest that is gone"
