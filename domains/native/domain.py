"""What a native guest's program is given: who it is, its disks, its channels to others, its end."""

import contextlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import trio

from domains.frontends.backing import Backing, size_of_rings
from domains.frontends.xenbus import Xenbus
from domains.frontends.xenstore import Xenstore
from domains.native.disk import Disk, Disks
from domains.native.event_channels import OWN_PORTS, EventChannels
from domains.native.grants import Grants
from domains.runtime import domain as runtime
from domains.runtime.numbers import Numbers
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.hypercalls import EvtchnResolve, SchedShutdown, Version
from kernel.abi.ids import Peer
from kernel.abi.roles import NativeStart
from kernel.abi.upcalls import BackendActive, BackendOffered, BackendWithdrawn, EvtchnConnected, PeerDied

__all__ = ["Domain"]

LOOK_FOR_PEER_S = 0.02
"""Between two looks whether a peer runs yet: a native guest starts in a third of it."""


class Domain:
    """This guest. `main(domain)` is given it.

    `disks` has a `Disk` for each of the TOML's, by its vdev; `args` are the TOML's. `log` writes events into the run's
    log: `log.info("noun.past_verb", field=value)`. What is printed goes to the console.

    When the administrator asks for a shutdown or reboot, `main` is cancelled: what it has to do before its end it does
    in a `finally`, under a shielded `trio.CancelScope`. A program that lets Trio not turn for five seconds when it
    is asked for a sign of life is hung, and ended: long computations belong in `trio.to_thread`.
    """

    def __init__(self, domain: runtime.Domain, nursery: trio.Nursery, start: NativeStart) -> None:
        self.name = domain.name
        self.peer = domain.peer
        """`(domid, generation)`: this incarnation, as others name it."""
        self.args: tuple[str, ...] = tuple(start.config.args)
        self.memory_mib = start.config.memory
        self.log = domain.log
        self._domain = domain
        ports, refs = Numbers(first=OWN_PORTS), Numbers()
        self.event_channels = EventChannels(domain, ports)
        self.grants = Grants(domain, refs)
        fronts = Disks(start.vbds, nursery, self._found_fault, self._found_stall)
        self.disks: Mapping[str, Disk] = MappingProxyType(fronts.by_vdev)
        self.xenstore = Xenstore(domain, nursery)
        """The store. This guest's folder is `/local/domain/DOMID`; it may write below `data` there."""
        self._nursery = nursery
        ring_bytes = size_of_rings(start.config.memory, len(start.vbds))
        self._xenbus = Xenbus(domain, nursery, ports, refs, fronts, partial(Backing.create, ring_bytes))
        if self.disks:
            self._xenbus.start()

    async def version(self) -> dict[str, Any]:
        """What hypervisor this is: a map `{version, abi, run}`."""
        return msgspec.convert((await self._domain.call(Version)).value, dict[str, Any])

    async def resolve(self, name: str) -> Peer | None:
        """The running incarnation of one of the TOML's `peers`, None while there is none. Raises Refused for a name
        that is not among them."""
        return msgspec.convert((await self._domain.call(EvtchnResolve, name=name)).value, Peer | None)

    async def wait_peer(self, name: str) -> Peer:
        """The same, waited for."""
        while True:
            peer = await self.resolve(name)
            if peer is not None:
                return peer
            await trio.sleep(LOOK_FOR_PEER_S)

    async def shutdown(self, reason: ShutdownReason = ShutdownReason.POWEROFF, detail: str = "") -> NoReturn:
        """End this guest at once (`SCHEDOP_shutdown`); the TOML's `on_*` says what follows. Returning from `main` is a
        POWEROFF, and what it raises a CRASH."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with trio.CancelScope(shield=True):
            await self._domain.call(SchedShutdown, reason=reason, detail=detail[:512])
        os._exit(0)

    async def take(self, message: object, descriptors: list[int]) -> None:
        """An upcall. What is taken of its descriptors is taken out of the list."""
        match message:
            case BackendOffered():
                await self._xenbus.offered(message)
            case BackendActive():
                self._xenbus.active(message)
            case BackendWithdrawn():
                self._xenbus.withdrawn(message)
            case EvtchnConnected(port=port):
                if not self.event_channels.connected(message, descriptors) and self._xenbus.connected(
                    port, descriptors[0]
                ):
                    descriptors.pop(0)
            case PeerDied(peer=peer):
                self.event_channels.peer_died(peer)

    def _found_fault(self, handle: Any, peer: Peer, what: str, evidence: str) -> None:
        self._nursery.start_soon(self._xenbus.report, handle, peer, what, evidence)

    def _found_stall(self, handle: Any, peer: Peer) -> None:
        self._nursery.start_soon(self._xenbus.tell_of_stall, handle, peer)
