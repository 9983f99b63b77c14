"""Event channels: who may bind which port, and who is told when an end dies.

Descriptors are not known here: the hypervisor makes a socket pair when `bind` allows it.
"""

from dataclasses import dataclass

from kernel.abi.hypercalls import ChannelKind
from kernel.abi.ids import ANY_GENERATION, Peer, Port
from kernel.abi.status import Refused, Status

__all__ = ["Bound", "EventChannels"]

MAX_PORTS = 1024
"""Of one domain. The busiest backend of this slice serves fifty guests of sixteen disks."""


@dataclass(slots=True)
class _End:
    remote: Peer
    kind: ChannelKind
    remote_port: Port | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A pair that has just been made: the end that was unbound, which is to be told, and the channel's kind."""

    owner: Peer
    owner_port: Port
    kind: ChannelKind


class EventChannels:
    """All ports of all living incarnations."""

    def __init__(self) -> None:
        self._ports: dict[Peer, dict[Port, _End]] = {}

    def alloc_unbound(self, caller: Peer, port: Port, remote: Peer, kind: ChannelKind) -> None:
        """Open `port` of `caller` for `remote`. Refuses a port in use (EEXIST) or one too many (ENOSPC)."""
        self._open(caller, port, _End(remote, kind))

    def bind(self, caller: Peer, port: Port, remote: Peer, remote_port: Port) -> Bound:
        """Bind to a peer's unbound port. Refuses ENOENT, EPERM (unbound for another) and EEXIST (taken, or own
        port in use)."""
        end = self._ports.get(remote, {}).get(remote_port)
        if end is None:
            raise Refused(Status.ENOENT, f"{remote} has no port {remote_port}")
        if end.remote not in (caller, Peer(caller.domid, ANY_GENERATION)):
            raise Refused(Status.EPERM, f"port {remote_port} of {remote} is open for {end.remote}")
        if end.remote_port is not None:
            raise Refused(Status.EEXIST, f"port {remote_port} of {remote} is bound already")
        self._open(caller, port, _End(remote, end.kind, remote_port))
        end.remote, end.remote_port = caller, port
        return Bound(remote, remote_port, end.kind)

    def close(self, caller: Peer, port: Port) -> None:
        """Free a port. The other end's port stays until its owner closes it."""
        if self._ports.get(caller, {}).pop(port, None) is None:
            raise Refused(Status.ENOENT, f"{caller} has no port {port}")

    def died(self, peer: Peer) -> set[Peer]:
        """Forget an incarnation's ports, and every port whose other end it was or was to be. Returns who shared one."""
        shared = {end.remote for end in self._ports.pop(peer, {}).values()}
        for owner, ports in self._ports.items():
            for port in [port for port, end in ports.items() if end.remote == peer]:
                shared.add(owner)
                del ports[port]
        return shared

    def _open(self, caller: Peer, port: Port, end: _End) -> None:
        ports = self._ports.setdefault(caller, {})
        if port in ports:
            raise Refused(Status.EEXIST, f"port {port} of {caller} is in use")
        if len(ports) >= MAX_PORTS:
            raise Refused(Status.ENOSPC, f"{caller} has {MAX_PORTS} ports: close one first")
        ports[port] = end
