"""A PV guest's vbds: on a data loop of their own, between the sockets of its kernel's drivers and the backends."""

import socket
from collections.abc import Callable
from functools import partial

import trio

from domains.frontends.backing import Backing
from domains.frontends.blkfront import BlkfrontLoop, VbdFront
from domains.frontends.xenbus import Xenbus
from domains.guests.reaper import socket_path
from domains.runtime.domain import Domain
from domains.runtime.numbers import Numbers
from domains.runtime.turn import wait_turn
from kernel.abi.ids import Peer, VbdHandle
from kernel.abi.roles import GuestVbd

__all__ = ["Disks"]


class Disks:
    """All of them. `xenbus` takes what the hypervisor says of backends."""

    def __init__(
        self,
        domain: Domain,
        nursery: trio.Nursery,
        vbds: list[GuestVbd],
        ring_bytes: int,
        ports: Numbers,
        refs: Numbers,
        on_guest_fault: Callable[[str], None],
        folder: str,
    ) -> None:
        self._nursery = nursery
        self._on_guest_fault = on_guest_fault
        self._token = trio.lowlevel.current_trio_token()
        self.paths: list[str] = []
        fronts = []
        for vbd in vbds:
            self.paths.append(socket_path(folder, vbd))
            line = socket.socket(fileno=domain.descriptors[f"vhost.{vbd.vdev}"])
            in_flight = domain.descriptors[f"in-flight.{vbd.vdev}"]
            fronts.append(VbdFront(vbd.handle, vbd.vdev, vbd.sectors, vbd.read_only, line, in_flight))
        self.loop = BlkfrontLoop(fronts, self._loop_found_fault, self._loop_found_stall)
        self.xenbus = Xenbus(domain, nursery, ports, refs, self.loop, partial(Backing.create, ring_bytes))

    def start(self) -> None:
        """Let the guest's kernel connect. Its requests wait until a backend is active."""
        if self.paths:
            self.xenbus.start()
        self.loop.start()

    async def beat(self) -> None:
        """Return once the loop has turned."""
        await wait_turn(self.loop.submit)

    def _loop_found_fault(self, handle: VbdHandle, peer: Peer | None, what: str, evidence: str) -> None:
        """Called on the loop's thread: hand it over to Trio's. Without a peer it is our guest that broke the rules."""
        if peer is None:
            self._token.run_sync_soon(self._on_guest_fault, f"{what}: {evidence}")
        else:
            self._token.run_sync_soon(self._nursery.start_soon, self.xenbus.report, handle, peer, what, evidence)

    def _loop_found_stall(self, handle: VbdHandle, peer: Peer) -> None:
        """On the loop's thread too."""
        self._token.run_sync_soon(self._nursery.start_soon, self.xenbus.tell_of_stall, handle, peer)
