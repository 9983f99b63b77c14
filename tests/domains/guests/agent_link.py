"""A guest's agent over a stream socket, under Trio, with no Dom0 between: for tests of guest and session.

async with trio.open_nursery() as nursery:
    link = AgentLink(line, on_fault=log_it)
    nursery.start_soon(link.run)
    await link.wait_ready()
    command = link.start([b"uname", b"-r"])
    while (output := await command.receive()) is not None:
        ...
    command.end        # Exited, Failed or Lost
"""

import math
from collections.abc import Mapping, Sequence

import trio

from domains.guests.agent import AgentSession
from domains.guests.agent_events import Event, Exited, Failed, Faulted, InputTaken, Lost, Output, Ready, Stopping
from domains.guests.agent_frames import CommandId, OutputStream, ShutdownMode

__all__ = ["AgentLink", "Command"]

READ_BYTES = 65536


class Command:
    """One command in the guest. `end` is set once `receive` has returned None."""

    def __init__(self, link: "AgentLink", number: CommandId) -> None:
        self._link = link
        self._number = number
        # No bound of its own: the session lets no more come than the command's two output windows.
        self._put, self._get = trio.open_memory_channel[Output](math.inf)
        self._room = trio.Event()
        self.end: Exited | Failed | Lost | None = None

    async def receive(self) -> tuple[OutputStream, bytes] | None:
        """The next bytes that the command wrote; None when it has ended and all has been received."""
        try:
            output = await self._get.receive()
        except trio.EndOfChannel:
            return None
        self._link.taken(output)
        return output.stream, output.data

    async def send_input(self, data: bytes) -> bool:
        """Give it to the command's standard input, waiting for room. False: the command ended before it had all."""
        rest = memoryview(data)
        while rest and self.end is None:
            self._room = trio.Event()
            rest = rest[self._link.send_input(self._number, bytes(rest)) :]
            if rest:
                await self._room.wait()
        return not rest

    def end_input(self) -> None:
        self._link.end_input(self._number)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._link.signal(self._number, number)

    def on_event(self, event: Event) -> None:
        """For the link alone."""
        match event:
            case Output():
                self._put.send_nowait(event)
            case Exited() | Failed() | Lost():
                self.end = event
                self._put.close()
        self._room.set()


class AgentLink:
    """All commands of one guest's agent."""

    def __init__(self, line: trio.SocketStream) -> None:
        self.line = line
        self.faults: list[Faulted] = []
        self._session = AgentSession()
        self._commands: dict[CommandId, Command] = {}
        self._to_send = trio.Event()
        self._ready = trio.Event()
        self.ready: Ready | None = None
        self.stopping: ShutdownMode | None = None

    async def run(self) -> None:
        """Until the line ends, with the guest; every command still running is `Lost` then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._handle(self._session.close())

    async def wait_ready(self) -> Ready:
        """Wait until commands can be started: at first, or again after guest and host were out of step."""
        await self._ready.wait()
        assert self.ready is not None
        return self.ready

    def start(self, argv: Sequence[bytes], env: Mapping[bytes, bytes] | None = None, folder: bytes = b"") -> Command:
        """Run a command: see `AgentSession.start` for what is refused."""
        number = self._session.start(argv, env, folder)
        command = self._commands[number] = Command(self, number)
        self._to_send.set()
        return command

    def shut_down(self, mode: ShutdownMode, grace_ms: int) -> None:
        """Ask the guest to end: see `AgentSession.shut_down`."""
        self._session.shut_down(mode, grace_ms)
        self._to_send.set()

    def taken(self, output: Output) -> None:
        self._session.taken(output.command, output.stream, len(output.data))
        self._to_send.set()

    def send_input(self, number: CommandId, data: bytes) -> int:
        self._to_send.set()
        return self._session.send_input(number, data)

    def end_input(self, number: CommandId) -> None:
        self._session.end_input(number)
        self._to_send.set()

    def signal(self, number: CommandId, signal: int) -> None:
        self._session.signal(number, signal)
        self._to_send.set()

    async def _read(self) -> None:
        try:
            while data := await self.line.receive_some(READ_BYTES):
                self._handle(self._session.receive(bytes(data)))
                self._to_send.set()
        except trio.BrokenResourceError:
            return

    async def _write(self) -> None:
        """A guest that does not read holds up what is sent to it, within its windows, and nothing else."""
        try:
            while True:
                if data := self._session.take_outgoing():
                    await self.line.send_all(data)
                else:
                    self._to_send = trio.Event()
                    await self._to_send.wait()
        except trio.BrokenResourceError:
            return

    def _handle(self, events: list[Event]) -> None:
        if self._ready.is_set() and not self._session.ready:
            self._ready = trio.Event()
        for event in events:
            match event:
                case Ready():
                    self.ready = event
                    self._ready.set()
                case Stopping(mode):
                    self.stopping = mode
                case Faulted():
                    self.faults.append(event)
                case Output() | InputTaken():
                    self._commands[event.command].on_event(event)
                case Exited() | Failed() | Lost():
                    self._commands.pop(event.command).on_event(event)
