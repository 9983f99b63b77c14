"""A PV guest's vbds: on a data loop of their own, between the sockets of its kernel's drivers and the backends."""

import socket
from collections.abc import Callable

import trio

from domains.frontends.blkfront import BlkfrontLoop, VbdFront
from domains.frontends.xenbus import Xenbus
from domains.runtime.domain import Domain
from domains.runtime.numbers import Numbers
from domains.runtime.turn import wait_turn
from kernel.abi.ids import Peer, VbdHandle
from kernel.abi.roles import GuestVbd

__all__ = ["Disks", "listen_for_guest"]


def listen_for_guest(vbd: GuestVbd) -> tuple[str, socket.socket]:
    """The vhost-user socket to which the guest's kernel connects for a disk: its path in the jail, and its
    listening end."""
    path = f"/run/{vbd.vdev}.sock"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen(1)
    return path, listening


class Disks:
    """All of them. `xenbus` takes what the hypervisor says of backends."""

    def __init__(
        self,
        domain: Domain,
        nursery: trio.Nursery,
        vbds: list[GuestVbd],
        ports: Numbers,
        on_guest_fault: Callable[[str], None],
    ) -> None:
        self._nursery = nursery
        self._on_guest_fault = on_guest_fault
        self._token = trio.lowlevel.current_trio_token()
        self.paths: list[str] = []
        fronts = []
        for vbd in vbds:
            path, listening = listen_for_guest(vbd)
            self.paths.append(path)
            fronts.append(VbdFront(vbd.handle, vbd.vdev, vbd.sectors, vbd.read_only, listening))
        self._loop = BlkfrontLoop(fronts, on_fault=self._loop_found_fault)
        self.xenbus = Xenbus(domain, nursery, ports, Numbers(), self._loop)

    def start(self) -> None:
        """Let the guest's kernel connect. Its requests wait until a backend is active."""
        if self.paths:
            self.xenbus.start()
        self._loop.start()

    async def beat(self) -> None:
        """Return once the loop has turned."""
        await wait_turn(self._loop.submit)

    def _loop_found_fault(self, handle: VbdHandle, peer: Peer | None, what: str, evidence: str) -> None:
        """Called on the loop's thread: hand it over to Trio's. Without a peer it is our guest that broke the rules."""
        if peer is None:
            self._token.run_sync_soon(self._on_guest_fault, f"{what}: {evidence}")
        else:
            self._token.run_sync_soon(self._nursery.start_soon, self.xenbus.report, handle, peer, what, evidence)
