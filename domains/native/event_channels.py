"""A native guest's event channels: packets and doorbells between two domains, made by the hypervisor once."""

import contextlib
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import trio

from domains.runtime import domain as runtime
from domains.runtime.channel import Channel
from domains.runtime.doorbell import Doorbell as RawDoorbell
from domains.runtime.numbers import Numbers
from kernel.abi import packet
from kernel.abi.codec import MAX_PACKET
from kernel.abi.hypercalls import ChannelKind, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnClose
from kernel.abi.ids import Peer, Port
from kernel.abi.status import DomainFault, KernelBug, Refused, Status
from kernel.abi.upcalls import EvtchnConnected

__all__ = ["OWN_PORTS", "Doorbell", "EventChannels", "MessageChannel", "PeerGone", "Unbound"]

OWN_PORTS = 0x8000
"""Ports from here on are given out by this library; those below are the program's to choose."""

LOOK_FOR_PORT_S = 0.02
"""Between two looks whether a peer has opened its port."""

CLOSE_S = 2.0
"""How long a close may take, since nothing can cancel it. The hypervisor answers in well under a millisecond."""


class PeerGone(Exception):
    """The other end's incarnation has ended, or has closed the channel."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(f"domain {peer} is gone")
        self.peer = peer


class _End:
    """One end of a channel: `port` is ours, `peer` is who has the other. An async context: closed at its end."""

    def __init__(self, channels: "EventChannels", port: Port, peer: Peer) -> None:
        self.port = port
        self.peer = peer
        self._channels = channels
        self._open = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up and free the port. Again does no harm, not even to who has the port's number then."""
        if self._open:
            self._open = False
            self._hang_up()
            await self._channels.free(self.port)

    def _hang_up(self) -> None:
        """Close what is ours of it."""


class MessageChannel(_End):
    """Packets both ways, each whole, in order. Any task may send; one receives."""

    def __init__(self, channels: "EventChannels", port: Port, peer: Peer, descriptor: int) -> None:
        super().__init__(channels, port, peer)
        self._channel = Channel(descriptor)

    async def send(self, data: bytes) -> None:
        """Send 1 … 65,536 bytes; waits while the peer does not take what it was sent. Raises PeerGone, ValueError."""
        if not 0 < len(data) <= MAX_PACKET:
            raise ValueError(f"{len(data)} bytes: a packet has 1 to {MAX_PACKET}")
        try:
            await self._channel.send(data)
        except OSError as error:
            raise PeerGone(self.peer) from error

    async def receive(self) -> bytes:
        """The next packet. Descriptors that a peer sends along are closed. Raises PeerGone, also for a peer that sends
        what is no packet of this ABI: it is heard no more."""
        try:
            data, descriptors = await self._channel.receive()
        except (OSError, DomainFault) as error:
            self._hang_up()
            raise PeerGone(self.peer) from error
        packet.close_all(descriptors)
        if not data:
            raise PeerGone(self.peer)
        return data

    def _hang_up(self) -> None:
        self._channel.close()


class Doorbell(_End):
    """A bell without words, beside memory that both share: ringing says "look there", and never waits."""

    def __init__(self, channels: "EventChannels", port: Port, peer: Peer, descriptor: int) -> None:
        super().__init__(channels, port, peer)
        self._bell = RawDoorbell(socket.socket(fileno=descriptor))

    def ring(self) -> None:
        """Wake the peer. Rung twice before it looks is as good as once."""
        self._bell.ring()

    async def wait(self) -> None:
        """Return when the peer has rung since the last time. Raises PeerGone."""
        await trio.lowlevel.wait_readable(self._bell.fileno())
        if not self._bell.drain():
            raise PeerGone(self.peer)

    def _hang_up(self) -> None:
        trio.lowlevel.notify_closing(self._bell.fileno())
        self._bell.close()


AnEnd = TypeVar("AnEnd", bound=_End)
_Make = Callable[["EventChannels", Port, Peer, int], AnEnd]


class Unbound(Generic[AnEnd]):
    """A port of ours that waits for `remote` to bind it."""

    def __init__(self, channels: "EventChannels", port: Port, remote: Peer, make: _Make[AnEnd]) -> None:
        self.port = port
        self.remote = remote
        self._channels = channels
        self._make = make
        self._settled = trio.Event()
        self._end: AnEnd | None = None

    async def connected(self) -> AnEnd:
        """Our end of the channel, once `remote` has bound it; the caller closes it. Raises PeerGone."""
        await self._settled.wait()
        if self._end is None:
            raise PeerGone(self.remote)
        return self._end

    async def close(self) -> None:
        """Wait no more. A channel that it has become is its own to close."""
        if not self._settled.is_set():
            self._settled.set()
            await self._channels.free(self.port)

    def settle(self, peer: Peer, descriptor: int) -> bool:
        """The peer has bound it. False when nobody waits any more: the descriptor stays the caller's."""
        if self._settled.is_set():
            return False
        self._end = self._make(self._channels, self.port, peer, descriptor)
        self._settled.set()
        return True

    def abandon(self) -> None:
        """The peer is gone, and will never bind it."""
        self._settled.set()


class EventChannels:
    """All ports of this domain. A peer is always one incarnation, `Peer(domid, generation)`.

    `port` is 1 … 32,767, or None for one that is chosen here. Every call raises Refused when the hypervisor refuses it:
    the ABI's catalogue has the reasons of `EvtchnAllocUnbound` and `EvtchnBindInterdomain`.
    """

    def __init__(self, domain: runtime.Domain, ports: Numbers) -> None:
        self._domain = domain
        self._ports = ports
        self._unbound: dict[Port, Unbound[MessageChannel] | Unbound[Doorbell]] = {}

    async def alloc_unbound(self, remote: Peer, port: int | None = None) -> Unbound[MessageChannel]:
        """Open a message channel for one named peer to bind; with `ANY_GENERATION` for the first of its incarnations
        that does."""
        waiting = Unbound(self, self._take(port), remote, MessageChannel)
        await self._alloc(waiting, ChannelKind.MESSAGE)
        return waiting

    async def alloc_doorbell(self, remote: Peer, port: int | None = None) -> Unbound[Doorbell]:
        """The same for a doorbell."""
        waiting = Unbound(self, self._take(port), remote, Doorbell)
        await self._alloc(waiting, ChannelKind.DOORBELL)
        return waiting

    async def bind_interdomain(self, remote: Peer, remote_port: int, port: int | None = None) -> MessageChannel:
        """Bind a message channel that a peer has opened for us. Not there yet is ENOENT."""
        own = self._take(port)
        return MessageChannel(self, own, remote, await self._bind(own, remote, remote_port))

    async def connect(self, remote: Peer, remote_port: int, port: int | None = None) -> MessageChannel:
        """`bind_interdomain`, once the peer has opened its port. For how long is the caller's affair: `trio.fail_after`
        around it."""
        while True:
            try:
                return await self.bind_interdomain(remote, remote_port, port)
            except Refused as refusal:
                if refusal.status is not Status.ENOENT:
                    raise
            await trio.sleep(LOOK_FOR_PORT_S)

    async def bind_doorbell(self, remote: Peer, remote_port: int, port: int | None = None) -> Doorbell:
        """The same for a doorbell."""
        own = self._take(port)
        return Doorbell(self, own, remote, await self._bind(own, remote, remote_port))

    def connected(self, message: EvtchnConnected, descriptors: list[int]) -> bool:
        """A peer has bound a port. False for a port that is not ours; else the descriptor is taken."""
        waiting = self._unbound.pop(message.port, None)
        if waiting is None:
            return False
        if waiting.settle(message.peer, descriptors[0]):
            descriptors.pop(0)
        return True

    def peer_died(self, peer: Peer) -> None:
        """That incarnation binds nothing any more. The ends that it had learn it from their own descriptors."""
        for port in [port for port, waiting in self._unbound.items() if waiting.remote == peer]:
            self._unbound.pop(port).abandon()

    async def free(self, port: Port) -> None:
        """Give a port up, also when the caller is cancelled, and whether or not the hypervisor has it still."""
        self._unbound.pop(port, None)
        with trio.move_on_after(CLOSE_S, shield=True) as scope:
            # Refused: gone with its peer. OSError: the hypervisor itself is gone.
            with contextlib.suppress(Refused, OSError):
                await self._domain.call(EvtchnClose, port=port)
        if not scope.cancelled_caught:
            self._ports.give_back(port)

    async def _alloc(self, waiting: Unbound[MessageChannel] | Unbound[Doorbell], kind: ChannelKind) -> None:
        self._unbound[waiting.port] = waiting
        try:
            await self._domain.call(EvtchnAllocUnbound, port=waiting.port, remote=waiting.remote, kind=kind)
        except BaseException:
            await self.free(waiting.port)
            raise

    async def _bind(self, port: Port, remote: Peer, remote_port: int) -> int:
        try:
            answer = await self._domain.call(
                EvtchnBindInterdomain, port=port, remote=remote, remote_port=Port(remote_port)
            )
        except BaseException:
            await self.free(port)
            raise
        if answer.descriptor is None:
            raise KernelBug("EvtchnBindInterdomain was answered OK without a descriptor")
        return answer.descriptor

    def _take(self, port: int | None) -> Port:
        if port is None:
            return Port(self._ports.take())
        if not 0 < port < OWN_PORTS:
            raise ValueError(f"port {port}: choose one of 1 to {OWN_PORTS - 1}")
        return Port(port)
