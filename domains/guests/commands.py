"""Commands in the guest: Dom0's orders on one side, the guest's agent on the other."""

import errno
import math
import signal
import socket
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from domains.guests.agent import AgentSession
from domains.guests.agent_events import (
    ConsoleLook,
    Event,
    Exited,
    Failed,
    Faulted,
    InputTaken,
    Lost,
    Output,
    Ready,
    Stopping,
)
from domains.guests.agent_frames import CommandId, ShutdownMode
from domains.guests.notes import Note, Notes
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from domains.runtime.numbers import Numbers
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.guest_io import (
    AgentMessage,
    ExecEnded,
    ExecInput,
    ExecMessage,
    ExecOffer,
    ExecOutput,
    ExecSignal,
    ExecStart,
    Stream,
)
from kernel.abi.hypercalls import EvtchnBindInterdomain, EvtchnClose
from kernel.abi.ids import Peer
from kernel.abi.packet import close_all
from kernel.abi.status import DomainFault, Refused, Status

__all__ = ["Commands"]

READY_S = 60.0
"""For the guest's agent to come up. A guest with a slow root disk takes a while."""

START_S = 10.0
"""For Dom0 to say what to run, on a channel that it offered."""

SHUTDOWN_GRACE_MS = 2000
"""For the guest's processes between SIGTERM and SIGKILL."""

NOT_RUNNABLE, NOT_FOUND = 126, 127
"""Exit status of a command that could not be run, as a shell gives it."""

LOOK_S = 5.0
"""For the agent to look at the console: it does nothing that waits, but a guest may be busy."""

READ_BYTES = 65536

MODES = {ShutdownReason.REBOOT: ShutdownMode.REBOOT}

_orders = Codec(AgentMessage)
_messages = Codec(ExecMessage)


@dataclass(eq=False, slots=True)
class _Running:
    """A command: the channel it is watched on, and the events that are still to be told there.

    The queue needs no bound of its own: a command's output is bounded by its windows, and it has one end.
    """

    channel: Channel
    told: trio.MemorySendChannel[Event]
    events: trio.MemoryReceiveChannel[Event]
    room: trio.Event = field(default_factory=trio.Event)


class Commands:
    """All commands of one guest, over its agent."""

    def __init__(self, domain: Domain, nursery: trio.Nursery, line: int, ports: Numbers, notes: Notes) -> None:
        self._domain = domain
        self._nursery = nursery
        self._agent = trio.socket.from_stdlib_socket(socket.socket(fileno=line))
        self._ports = ports
        self._notes = notes
        self._session = AgentSession(life=domain.life, known=bool(notes[Note.AGENT_READY]))
        self._ready = trio.Event()
        self._to_send = trio.Event()
        self._running: dict[CommandId, _Running] = {}
        self._looking = trio.Lock()
        self._looked = trio.Event()
        self._look: ConsoleLook | None = None

    async def serve(self) -> None:
        """Carry frames to and from the guest's agent, until the guest's end of the line closes."""
        self._nursery.start_soon(self._send_frames)
        while True:
            try:
                data = await self._agent.recv(READ_BYTES)
            except OSError:
                data = b""
            self._tell(self._session.receive(data) if data else self._session.close())
            if not data:
                return

    def take_orders_from(self, descriptor: int, dom0: Peer) -> None:
        """Dom0 has opened a channel to us: commands are offered there."""
        self._nursery.start_soon(self._take_orders, Channel(descriptor), dom0)

    def shut_down(self, reason: ShutdownReason) -> None:
        """Have the guest power off or reboot, as soon as its agent is there to be asked."""
        self._nursery.start_soon(self._shut_down, MODES.get(reason, ShutdownMode.POWEROFF))

    @property
    def had_agent(self) -> bool:
        """The guest's agent has come up, whatever became of it."""
        return bool(self._notes[Note.AGENT_READY])

    async def ready(self) -> None:
        """Wait until the guest's agent has come up."""
        await self._ready.wait()

    async def look_at_console(self, rows: int = 0, columns: int = 0) -> ConsoleLook:
        """How much of the console's input nobody has read; before that, make its window so large.

        Refuses EAGAIN where there is no agent, ETIMEDOUT where it does not answer.
        """
        async with self._looking:
            self._look, self._looked = None, trio.Event()
            self._session.look_at_console(rows, columns)
            self._to_send.set()
            with trio.move_on_after(LOOK_S):
                await self._looked.wait()
            if self._look is None:
                raise Refused(Status.ETIMEDOUT, f"the guest's agent did not look at the console within {LOOK_S:g} s")
            return self._look

    async def _shut_down(self, mode: ShutdownMode) -> None:
        await self._ready.wait()
        try:
            self._session.shut_down(mode, SHUTDOWN_GRACE_MS)
        except Refused as refusal:
            self._domain.log.info("shutdown.refused", why=refusal.why)
        self._to_send.set()

    async def _send_frames(self) -> None:
        while True:
            data = memoryview(self._session.take_outgoing())
            if not data:
                self._to_send = trio.Event()
                await self._to_send.wait()
            while data:
                try:
                    data = data[await self._agent.send(data) :]
                except OSError:
                    return

    def _tell(self, events: list[Event]) -> None:
        """Hand each event to whom it concerns."""
        for event in events:
            match event:
                case Ready(release=release, boot_id=boot_id, trouble=trouble):
                    self._notes[Note.AGENT_READY] = 1
                    self._domain.log.info("guest.ready", release=release, boot_id=boot_id, trouble=trouble)
                    self._ready.set()
                case ConsoleLook() if not self._session.looks:
                    self._look = event
                    self._looked.set()
                case Stopping(mode=mode):
                    self._domain.log.info("guest.stopping", mode=mode.name.lower())
                case Faulted(what=what, evidence=evidence, by_us=by_us):
                    self._domain.log.warning("agent.faulted", what=what, evidence=evidence, by_us=by_us)
                case InputTaken(command=command):
                    self._running[command].room.set()
                case Output(command=command):
                    self._running[command].told.send_nowait(event)
                case Exited(command=command) | Failed(command=command) | Lost(command=command):
                    self._running.pop(command).told.send_nowait(event)
        self._to_send.set()

    async def _take_orders(self, channel: Channel, dom0: Peer) -> None:
        """Until Dom0 closes its channel, or sends what is no offer."""
        try:
            while True:
                data, descriptors = await channel.receive()
                close_all(descriptors)
                if not data:
                    return
                for message in _orders.decode(data):
                    if isinstance(message, ExecOffer):
                        self._nursery.start_soon(self._take_offer, message, dom0)
        except (OSError, DomainFault, msgspec.DecodeError) as error:
            self._domain.log.warning("orders.unreadable", error=repr(error))
        finally:
            channel.close()

    async def _take_offer(self, offer: ExecOffer, dom0: Peer) -> None:
        """Bind the port that Dom0 offers, and run one command there."""
        port = self._ports.take()
        try:
            answer = await self._domain.call(EvtchnBindInterdomain, port=port, remote=dom0, remote_port=offer.port)
        except Refused as refusal:
            self._domain.log.info("offer.refused", why=refusal.why)
            self._ports.give_back(port)
            return
        assert answer.descriptor is not None
        channel = Channel(answer.descriptor)
        try:
            await self._run(channel)
        except* (OSError, DomainFault, msgspec.DecodeError) as errors:
            self._domain.log.info("command.abandoned", error=repr(errors.exceptions[0]))
        finally:
            channel.close()
            await self._close_port(port)

    async def _close_port(self, port: int) -> None:
        try:
            await self._domain.call(EvtchnClose, port=port)
        except Refused:
            self._domain.log.debug("port.gone", port=port)
        self._ports.give_back(port)

    async def _run(self, channel: Channel) -> None:
        """One command, from what it is to how it ended."""
        try:
            command, running = await self._start(channel)
        except Refused as refusal:
            await channel.send(encode([ExecEnded(why=refusal.why)]))
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, command, running)
            try:
                await self._report(command, running)
            finally:
                self._session.signal(command, signal.SIGKILL)
                self._to_send.set()
                nursery.cancel_scope.cancel()

    async def _start(self, channel: Channel) -> tuple[CommandId, _Running]:
        """Raises Refused when there is nothing to start, or no agent to start it."""
        messages: list[Any] = []
        with trio.move_on_after(START_S):
            messages = await _next_messages(channel)
        if len(messages) != 1 or not isinstance(messages[0], ExecStart):
            raise Refused(Status.EINVAL, "no command was given: send one ExecStart first")
        with trio.move_on_after(READY_S):
            await self._ready.wait()
        command = self._session.start(messages[0].argv)
        running = self._running[command] = _Running(channel, *trio.open_memory_channel[Event](math.inf))
        self._to_send.set()
        return command, running

    async def _feed(self, command: CommandId, running: _Running) -> None:
        """Input and signals from the channel to the command. Without its watcher a command is killed."""
        while messages := await _next_messages(running.channel):
            for message in messages:
                match message:
                    case ExecInput(data=b""):
                        self._session.end_input(command)
                    case ExecInput(data=data):
                        await self._give(command, running, data)
                    case ExecSignal(number=number):
                        self._session.signal(command, number)
                self._to_send.set()
        self._session.signal(command, signal.SIGKILL)
        self._to_send.set()

    async def _give(self, command: CommandId, running: _Running, data: bytes) -> None:
        """Give a command its input as it takes it. What one that has ended does not take is dropped."""
        while command in self._running:
            running.room = trio.Event()
            data = data[self._session.send_input(command, data) :]
            self._to_send.set()
            if not data:
                return
            await running.room.wait()

    async def _report(self, command: CommandId, running: _Running) -> None:
        """Output from the command to the channel, and last of all its end."""
        async for event in running.events:
            match event:
                case Output(stream=stream, data=data):
                    await running.channel.send(encode([ExecOutput(Stream(stream), data)]))
                    self._session.taken(command, stream, len(data))
                    self._to_send.set()
                case Exited(status=status, signal=number):
                    return await running.channel.send(encode([ExecEnded(status, number)]))
                case Failed(errno=code, why=why):
                    await running.channel.send(encode([ExecOutput(Stream.STDERR, f"{why}\n".encode())]))
                    status = NOT_FOUND if code == errno.ENOENT else NOT_RUNNABLE
                    return await running.channel.send(encode([ExecEnded(status)]))
                case Lost():
                    return await running.channel.send(encode([ExecEnded(why="the guest's agent was lost under it")]))


async def _next_messages(channel: Channel) -> list[Any]:
    """The next packet's messages; none when the channel has ended. Raises DomainFault for one that is unreadable."""
    data, descriptors = await channel.receive()
    close_all(descriptors)
    messages = _messages.decode(data) if data else []
    if any(isinstance(message, Undecodable) for message in messages):
        raise DomainFault(None, "an unreadable message about a command")
    return messages
