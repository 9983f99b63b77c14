"""The hypervisor as Dom0 sees it, and guests whose commands are coroutines of the test; all in the test's Trio run."""

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from domains.dom0.main import main
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi import packet
from kernel.abi.codec import Codec, cut, encode
from kernel.abi.guest_config import DomainInfo, DomainState, DriverInfo, ShutdownReason, VbdInfo
from kernel.abi.guest_io import (
    AGENT_PORT,
    AgentMessage,
    ExecEnded,
    ExecInput,
    ExecMessage,
    ExecOutput,
    ExecSignal,
    Stream,
)
from kernel.abi.ids import DomId, Generation, Peer, Port, VbdHandle
from kernel.abi.keeping import Tail, TailEnd, TailPart
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import AdminConnection, EvtchnConnected, PeerDied, Reply, ReplyPart, ShutdownRequested

DOM0 = Peer(DomId(0), Generation(1))
VBD = VbdInfo(VbdHandle(1), "vda", "/images/a.img", "rw", 2048, "blkback", "web", "connected")
DRIVER = DriverInfo(
    "blkback", DomId(1), DomainState.RUNNING, Generation(3), 4001, Generation(4), 4002, 2, "SIGKILL", "full", [VBD]
)


class RecordedLog:
    """Keeps a domain's log events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = info


def domain_info(domid: int, name: str, kind: str = "pv", **changed: Any) -> DomainInfo:
    values: dict[str, Any] = {
        "domid": domid,
        "name": name,
        "kind": kind,
        "state": DomainState.RUNNING,
        "generation": 1,
        "pid": 4000 + domid,
        "memory": 64,
        "vcpus": 1,
        "cpus": [0],
        "cpu_time_s": 1.25,
        "uptime_s": 9.0,
        "jail": "full",
        "restarts": 0,
    }
    return DomainInfo(**{**values, **changed})


class Killed(Exception):
    """Dom0 has closed a command's channel."""


class GuestCommand:
    """One command in a guest, as the guest's actor has it."""

    def __init__(self, guest: "FakeGuest", channel: Channel, argv: list[bytes], early: list[Any]) -> None:
        self._guest = guest
        self.channel = channel
        self.argv = argv
        self._early = early

    async def receive(self) -> Any:
        while not self._early:
            data, descriptors = await self.channel.receive()
            assert not descriptors
            if not data:
                raise Killed
            self._early = Codec(ExecMessage).decode(data)
        return self._early.pop(0)

    async def read(self) -> bytes:
        while True:
            message = await self.receive()
            if isinstance(message, ExecInput):
                return message.data

    async def signal(self) -> int:
        while True:
            message = await self.receive()
            if isinstance(message, ExecSignal):
                return message.number

    async def write(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        try:
            await self.channel.send(encode([ExecOutput(stream, data)]))
        except OSError as error:
            raise Killed from error
        self._guest.writes += 1

    async def end(self, status: int | None = 0, signal: int | None = None, why: str = "") -> None:
        await self.channel.send(encode([ExecEnded(status, signal, why)]))


Program = Callable[[GuestCommand], Awaitable[None]]


class FakeGuest:
    """A guest with its agent. `programs` are found by the command's first word."""

    def __init__(self, info: DomainInfo, hypervisor: "FakeHypervisor", nursery: trio.Nursery) -> None:
        self.info = info
        self.peer = Peer(info.domid, info.generation)
        self.port_open = True
        self.takes_offers = True
        self.programs: dict[bytes, Program] = dict(PROGRAMS)
        self.killed: list[bytes] = []
        self.running = 0
        self.writes = 0
        self.agent: Channel | None = None
        self.binds = 0
        self._hypervisor = hypervisor
        self._nursery = nursery
        self._life = trio.CancelScope()

    def bind_agent(self) -> int:
        ours, theirs = packet.pair()
        self.agent = Channel(ours.detach())
        self.binds += 1
        self._nursery.start_soon(self._serve_agent, self.agent)
        return theirs.detach()

    async def _serve_agent(self, agent: Channel) -> None:
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    while True:
                        data, _ = await agent.receive()
                        if not data:
                            return
                        for offer in Codec(AgentMessage).decode(data):
                            if self.takes_offers:
                                channel = await self._hypervisor.bind_from_guest(self.peer, offer.port)
                                nursery.start_soon(self._run, channel)
        finally:
            agent.close()

    async def _run(self, channel: Channel) -> None:
        data: bytes = b""
        self.running += 1
        try:
            data, _ = await channel.receive()
            if not data:
                return
            start, *rest = Codec(ExecMessage).decode(data)
            await self.programs[start.argv[0]](GuestCommand(self, channel, start.argv, rest))
        except Killed:
            self.killed.append(start.argv[0])
        finally:
            self.running -= 1
            channel.close()

    async def die(self) -> None:
        """All at once, as under SIGKILL."""
        self._hypervisor.domains.pop(self.info.name)
        self._life.cancel()
        await self._hypervisor.tell(PeerDied(self.peer))


async def _cat(command: GuestCommand) -> None:
    while data := await command.read():
        await command.write(data)
    await command.end()


async def _both(command: GuestCommand) -> None:
    """Every byte value on both streams."""
    await command.write(bytes(range(256)))
    await command.write(bytes(reversed(range(256))), Stream.STDERR)
    await command.end(3)


async def _echo(command: GuestCommand) -> None:
    await command.write(b" ".join(command.argv[1:]))
    await command.end()


async def _flood(command: GuestCommand) -> None:
    for _ in range(int(command.argv[1])):
        await command.write(b"\xa5" * 16384)
    await command.end()


async def _sleep(command: GuestCommand) -> None:
    await command.write(b"asleep")
    while True:
        await command.receive()


async def _deaf(command: GuestCommand) -> None:
    """Never reads its input."""
    await command.write(b"deaf")
    await trio.sleep_forever()


async def _signalled(command: GuestCommand) -> None:
    await command.write(b"waiting")
    await command.end(None, await command.signal())


async def _ignorant(command: GuestCommand) -> None:
    """Ends while its input is still coming."""
    await command.write(b"done")
    await command.end()


PROGRAMS: dict[bytes, Program] = {
    b"cat": _cat,
    b"both": _both,
    b"echo": _echo,
    b"flood": _flood,
    b"sleep": _sleep,
    b"deaf": _deaf,
    b"signalled": _signalled,
    b"ignorant": _ignorant,
}


@dataclass
class FakeHypervisor:
    """Answers Dom0's hypercalls from what the test has put in here."""

    nursery: trio.Nursery
    run: Path
    domains: dict[str, DomainInfo] = field(default_factory=dict)
    guests: dict[Peer, FakeGuest] = field(default_factory=dict)
    tails: dict[str | None, bytes] = field(default_factory=dict)
    refusals: dict[type, Refused] = field(default_factory=dict)
    silent: set[type] = field(default_factory=set)
    calls: list[Any] = field(default_factory=list)
    ports: dict[int, Peer] = field(default_factory=dict)
    log: RecordedLog = field(default_factory=RecordedLog)

    def __post_init__(self) -> None:
        ours, theirs = packet.pair()
        keeper, dom0s_keeper = packet.pair()
        self.control = Channel(ours.detach())
        self.keeper = Channel(keeper.detach())
        descriptors = {"keeper": dom0s_keeper.detach()}
        self.domain = Domain("dom0", DOM0, theirs.detach(), self.log, b"", descriptors)
        self.domains["dom0"] = domain_info(0, "dom0", "dom0")
        self.domains["blkback"] = domain_info(1, "blkback", "driver")

    @property
    def socket_path(self) -> Path:
        return self.run / "admin.sock"

    def add_guest(self, name: str = "web", **changed: Any) -> FakeGuest:
        info = domain_info(2 + len(self.guests), name, vbds=[VBD], **changed)
        guest = FakeGuest(info, self, self.nursery)
        self.domains[name] = info
        self.guests[guest.peer] = guest
        return guest

    async def tell(self, upcall: Any, *descriptors: int) -> None:
        """Send an upcall; its descriptors are ours to close."""
        await self.control.send(encode([upcall]), descriptors)
        packet.close_all(descriptors)

    async def bind_from_guest(self, guest: Peer, port: int) -> Channel:
        assert self.ports[port] == guest
        ours, theirs = packet.pair()
        await self.tell(EvtchnConnected(Port(port), guest, h.ChannelKind.MESSAGE), theirs.detach())
        return Channel(ours.detach())

    async def serve_control(self) -> None:
        codec = Codec(h.Hypercall)
        while True:
            data, descriptors = await self.control.receive()
            if not data:
                return
            assert not descriptors
            for call in codec.decode(data):
                self.calls.append(call)
                if hasattr(call, "request") and type(call) not in self.silent:
                    await self._reply(call)

    async def _reply(self, call: Any) -> None:
        try:
            if refusal := self.refusals.get(type(call)):
                raise refusal
            value, descriptors = self._answer(call)
        except Refused as refused:
            value, descriptors = None, []
            reply = Reply(call.request, refused.status, None, refused.why)
        else:
            parts = cut(value)
            for part in parts:
                await self.tell(ReplyPart(call.request, part))
            reply = Reply(call.request, Status.OK, None if parts else value, "", len(descriptors))
        await self.tell(reply, *descriptors)

    def _answer(self, call: Any) -> tuple[Any, list[int]]:
        match call:
            case d.DomctlGetInfo(domid=None):
                return list(self.domains.values()), []
            case d.DomctlGetInfo(domid=domid):
                return [self._by_domid(domid)], []
            case d.DomctlCreate(config=config):
                return self.add_guest(config.name).info.domid, []
            case d.DomctlDestroy(domid=domid):
                del self.domains[self._by_domid(domid).name]
            case h.EvtchnAllocUnbound(port=port, remote=remote):
                assert port not in self.ports
                self.ports[port] = remote
            case h.EvtchnBindInterdomain(port=port, remote=remote, remote_port=remote_port):
                assert port not in self.ports
                assert remote_port == AGENT_PORT
                guest = self.guests[remote]
                if not guest.port_open:
                    raise Refused(Status.ENOENT, f"{remote} has no port {remote_port}")
                self.ports[port] = remote
                return None, [guest.bind_agent()]
            case h.EvtchnClose(port=port):
                if self.ports.pop(port, None) is None:
                    raise Refused(Status.ENOENT, f"no port {port}")
            case d.SysctlInfo():
                return {"host": "test", "nr_cpus": 2}, []
            case d.SysctlDrivers():
                return [DRIVER], []
        return None, []

    def _by_domid(self, domid: int | None) -> DomainInfo:
        for domain in self.domains.values():
            if domain.domid == domid:
                return domain
        raise Refused(Status.ENOENT, f"there is no domain {domid}")

    async def serve_keeper(self) -> None:
        while True:
            data, _ = await self.keeper.receive()
            if not data:
                return
            (tail,) = Codec(Tail).decode(data)
            kept = self.tails.get(tail.name)
            for at in range(0, len(kept or b""), 32768):
                await self.keeper.send(encode([TailPart((kept or b"")[at : at + 32768])]))
            await self.keeper.send(encode([TailEnd(kept is not None)]))

    async def listen(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        """The admin socket, each connection of which goes to Dom0."""
        folder = os.open(self.run, os.O_PATH)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(f"/proc/self/fd/{folder}/admin.sock")
            os.close(folder)
            listening.listen(256)
            listening.setblocking(False)
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(listening)
                connection, _ = listening.accept()
                await self.tell(AdminConnection(1000), connection.detach())


@asynccontextmanager
async def running_dom0(run: Path):
    """A hypervisor with a real Dom0 service. At the end Dom0 is asked to finish, and must leave nothing open."""
    async with trio.open_nursery() as nursery:
        hypervisor = FakeHypervisor(nursery, run)
        ended = trio.Event()

        async def dom0() -> None:
            await main(hypervisor.domain)
            ended.set()

        nursery.start_soon(hypervisor.serve_control)
        nursery.start_soon(hypervisor.serve_keeper)
        await nursery.start(hypervisor.listen)
        nursery.start_soon(dom0)
        yield hypervisor
        await hypervisor.tell(ShutdownRequested(ShutdownReason.POWEROFF))
        with trio.fail_after(5):
            await ended.wait()
        nursery.cancel_scope.cancel()
    hypervisor.control.close()
    hypervisor.keeper.close()
    hypervisor.domain._control.close()
