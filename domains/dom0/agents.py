"""The guests' agents: one channel to each guest incarnation, on which Dom0 offers a further one for each command."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from domains.dom0.ports import Ports
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from kernel.abi import packet
from kernel.abi.codec import encode
from kernel.abi.domctl import DomctlGetInfo
from kernel.abi.guest_config import DomainInfo
from kernel.abi.guest_io import AGENT_PORT, ExecOffer
from kernel.abi.hypercalls import ChannelKind, EvtchnAllocUnbound, EvtchnBindInterdomain
from kernel.abi.ids import Peer, Port
from kernel.abi.status import DomainFault, KernelBug, Refused, Status

__all__ = ["Agents", "Command"]

AGENT_S = 20.0
"""Until a guest has opened its port and bound the one offered. A guest boots in 0.1 s; fifty at once in 4 s."""

BIND_RETRY_S = 0.02
"""Between two looks whether a booting guest has opened its port: a fifth of a boot."""

_NOT_YET = frozenset({Status.ENOENT, Status.EPERM, Status.EEXIST})
"""The guest has not opened its port yet, or not yet for this incarnation of Dom0, or it is still bound to an actor that
has just died."""

TOLD_S = 1.0
"""How much later than the end of an agent's channel its cause may be told."""


ATTEMPTS = 5
"""To find an agent that lives until a command has begun."""

_ENDED = "ended while the command ran"
_LET_GO = "let go of the command while it ran"
_RESET = f"{_LET_GO}: the guest's devices were restarted under it"


@dataclass(frozen=True, slots=True)
class Command:
    """The channel on which one command runs."""

    guest: str
    channel: Channel
    agent: "_Agent"

    async def why_ended(self) -> str:
        """Why a command has no end of its own, in one line for a person."""
        with trio.move_on_after(TOLD_S):
            await self.agent.told.wait()
        return f"guest {self.guest} {self.agent.fate}"


@dataclass(slots=True)
class _Offer:
    settled: trio.Event = field(default_factory=trio.Event)
    channel: Channel | None = None


class Agents:
    """All guests' agents. `nursery` outlives every session."""

    def __init__(self, domain: Domain, nursery: trio.Nursery, ports: Ports) -> None:
        self._domain = domain
        self._nursery = nursery
        self._ports = ports
        self._agents: dict[Peer, _Agent] = {}
        self._leaving: set[_Agent] = set()

    @asynccontextmanager
    async def command(self, guest: DomainInfo) -> AsyncIterator[Command]:
        """A channel to run one command in a guest; closed at the end. Refuses EHOSTDOWN when the guest takes none."""
        async with AsyncExitStack() as stack:
            for attempt in range(1, ATTEMPTS + 1):
                agent = await self._bound(guest)
                try:
                    channel = await stack.enter_async_context(agent.command())
                    break
                except Refused:
                    if attempt == ATTEMPTS or not await agent.was_reset():
                        raise
            yield Command(guest.name, channel, agent)

    async def _bound(self, guest: DomainInfo) -> "_Agent":
        """The agent of this incarnation, with its channel."""
        peer = Peer(guest.domid, guest.generation)
        agent = self._agents.get(peer)
        if agent is None or agent.gone.is_set():
            agent = self._agents[peer] = _Agent(self._domain, self._ports, peer, guest.name)
        try:
            with trio.fail_after(AGENT_S):
                if await agent.bind():
                    self._nursery.start_soon(self._keep, agent)
        except (trio.TooSlowError, Refused) as error:
            raise agent.refusal(error) from error
        finally:
            if not agent.bound and not agent.wanted:
                self._forget(agent)
        return agent

    def _forget(self, agent: "_Agent") -> None:
        if self._agents.get(agent.guest) is agent:
            del self._agents[agent.guest]

    def connected(self, guest: Peer, port: Port, descriptor: int) -> None:
        """A guest has bound a port of Dom0's. Takes the descriptor."""
        channel = Channel(descriptor)
        agent = self._agents.get(guest)
        if agent is None or not agent.take(port, channel):
            channel.close()

    def peer_died(self, guest: Peer) -> None:
        """That incarnation has ended; commands in it learn it from their own channels too."""
        self._tell(guest, _ENDED)

    def peer_reset(self, guest: Peer) -> None:
        """That incarnation goes on, but what carried its commands is another process now."""
        self._tell(guest, _RESET)

    def _tell(self, guest: Peer, fate: str) -> None:
        for agent in (self._agents.get(guest), *self._leaving):
            if agent is not None and agent.guest == guest and not agent.told.is_set():
                agent.fate = fate
                agent.told.set()
                agent.end()

    async def _keep(self, agent: "_Agent") -> None:
        await agent.watch()
        self._forget(agent)
        self._leaving.add(agent)
        with trio.move_on_after(TOLD_S):
            await agent.told.wait()
        self._leaving.discard(agent)


class _Agent:
    """The agent of one guest incarnation. Its channel is bound when the first command needs it."""

    def __init__(self, domain: Domain, ports: Ports, guest: Peer, name: str) -> None:
        self.guest = guest
        self.gone = trio.Event()
        self.told = trio.Event()
        self.fate = _LET_GO
        self._domain = domain
        self._ports = ports
        self._name = name
        self._port = Port(0)
        self._channel: Channel | None = None
        self._binding = trio.Lock()
        self._offers: dict[Port, _Offer] = {}
        self._life = trio.CancelScope()

    @property
    def bound(self) -> bool:
        return self._channel is not None

    @property
    def wanted(self) -> bool:
        """Somebody else is about to bind it."""
        return self._binding.locked()

    async def bind(self) -> bool:
        """Bind the channel if it is not bound. True for the caller that did; it has to see that `watch` runs."""
        async with self._binding:
            if self._channel is not None:
                return False
            self._port = self._ports.take()
            try:
                self._channel = Channel(await self._bind_when_open())
            finally:
                if self._channel is None:
                    await self._ports.close(self._port)
            return True

    async def _bind_when_open(self) -> int:
        while True:
            try:
                answer = await self._domain.call(
                    EvtchnBindInterdomain, port=self._port, remote=self.guest, remote_port=Port(AGENT_PORT)
                )
            except Refused as refusal:
                if refusal.status not in _NOT_YET:
                    raise
            else:
                if answer.descriptor is None:
                    raise KernelBug("EvtchnBindInterdomain was answered OK without a descriptor")
                return answer.descriptor
            await self._domain.call(DomctlGetInfo, domid=self.guest.domid)
            await trio.sleep(BIND_RETRY_S)

    async def watch(self) -> None:
        """Until the agent's channel ends: with the guest, or because it sent something on it, as it never may."""
        assert self._channel is not None
        try:
            with self._life:
                data, descriptors = await self._channel.receive()
                packet.close_all(descriptors)
                if data:
                    self._log_fault(f"{len(data)} bytes and {len(descriptors)} descriptors on its agent channel")
        except (OSError, DomainFault) as error:
            self._log_fault(repr(error))
        finally:
            self.end()
            self._channel.close()
            await self._ports.close(self._port)

    def _log_fault(self, what: str) -> None:
        self._domain.log.warning("agent.broke_abi", guest=self._name, peer=str(self.guest), what=what)

    async def was_reset(self) -> bool:
        """Whether its guest lives and has another one now: what was not begun may be asked of that."""
        if self.gone.is_set():
            with trio.move_on_after(TOLD_S):
                await self.told.wait()
        return self.fate == _RESET

    def end(self) -> None:
        """Nothing comes from this agent any more."""
        self.gone.set()
        self._life.cancel()
        for offer in self._offers.values():
            offer.settled.set()

    def take(self, port: Port, channel: Channel) -> bool:
        """The guest has bound an offered port. False when nobody waits for it."""
        offer = self._offers.get(port)
        if offer is None or offer.settled.is_set():
            return False
        offer.channel = channel
        offer.settled.set()
        return True

    @asynccontextmanager
    async def command(self) -> AsyncIterator[Channel]:
        """Offer a port and give the channel that comes on it."""
        port = self._ports.take()
        offer = self._offers[port] = _Offer()
        try:
            yield await self._settle(port, offer)
        finally:
            del self._offers[port]
            if offer.channel is not None:
                offer.channel.close()
            await self._ports.close(port)

    async def _settle(self, port: Port, offer: _Offer) -> Channel:
        assert self._channel is not None
        try:
            with trio.fail_after(AGENT_S):
                await self._domain.call(EvtchnAllocUnbound, port=port, remote=self.guest, kind=ChannelKind.MESSAGE)
                await self._channel.send(encode([ExecOffer(port)]))
                if not self.gone.is_set():
                    await offer.settled.wait()
        except (trio.TooSlowError, trio.ClosedResourceError, Refused, OSError) as error:
            raise self.refusal(error) from error
        if offer.channel is None:
            raise self.refusal(None)
        return offer.channel

    def refusal(self, error: Exception | None) -> Refused:
        """What the administrator is told when no command can be run."""
        match error:
            case trio.TooSlowError():
                why = f"guest {self._name} takes no command within {AGENT_S:g} s: tv dmesg {self._name} may tell why"
            case Refused(status=status, why=said) if status not in (Status.ENOENT, Status.ESTALE):
                why = f"guest {self._name} takes no commands: {said}"
            case _:
                why = f"guest {self._name} is not running: tv dmesg {self._name} shows how it ended"
        return Refused(Status.EHOSTDOWN, why)
