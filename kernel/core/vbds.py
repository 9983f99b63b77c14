"""Virtual block devices: which guest has which, which driver serves it, and how far each ring has come."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from kernel.abi.ids import DomId, Peer, VbdHandle
from kernel.abi.status import Refused, Status

__all__ = ["Vbd", "VbdTable"]


@dataclass(slots=True)
class Vbd:
    """One vbd. `rings` has the backend incarnations that its frontend made a ring for, and whether each has
    mapped it."""

    handle: VbdHandle
    vdev: str
    guest: DomId
    driver: DomId
    sectors: int
    read_only: bool
    target: str
    frontend: Peer | None = None
    rings: dict[Peer, bool] = field(default_factory=dict)

    def state(self, active: Peer | None) -> str:
        """As `tv info` shows it: `connected` when the active backend has mapped the ring."""
        if self.frontend is None:
            return "closed"
        if active is None:
            return "waiting"
        return "connected" if self.rings.get(active) else "connecting"


class VbdTable:
    """All vbds of a run."""

    def __init__(self) -> None:
        self._vbds: dict[VbdHandle, Vbd] = {}
        self._next = 1

    def add(self, *, vdev: str, guest: DomId, driver: DomId, sectors: int, read_only: bool, target: str) -> Vbd:
        """A new vbd, not yet used by any incarnation of its guest."""
        vbd = Vbd(VbdHandle(self._next), vdev, guest, driver, sectors, read_only, target)
        self._next += 1
        self._vbds[vbd.handle] = vbd
        return vbd

    def remove(self, handle: VbdHandle) -> None:
        """Forget a vbd."""
        del self._vbds[handle]

    def __getitem__(self, handle: VbdHandle) -> Vbd:
        return self._vbds[handle]

    def of_guest(self, guest: DomId) -> list[Vbd]:
        """The vbds of a guest, in the order of its configuration."""
        return [vbd for vbd in self._vbds.values() if vbd.guest == guest]

    def of_driver(self, driver: DomId) -> list[Vbd]:
        """The vbds that a driver serves."""
        return [vbd for vbd in self._vbds.values() if vbd.driver == driver]

    def connect(self, caller: Peer, handle: VbdHandle, backend: Peer) -> Vbd:
        """A frontend has made a ring for `backend`. Refuses a vbd that is not its own, a backend of another driver, or
        a second ring for one that has one: each is a message to the backend."""
        vbd = self._vbds.get(handle)
        if vbd is None or vbd.frontend != caller or backend.domid != vbd.driver:
            raise Refused(Status.ENOENT, f"{caller} has no vbd {handle} that {backend} serves")
        if backend in vbd.rings:
            raise Refused(Status.EEXIST, f"{backend} has a ring of vbd {handle} already")
        vbd.rings[backend] = False
        return vbd

    def connected(self, caller: Peer, handle: VbdHandle, frontend: Peer) -> Vbd:
        """A backend has mapped that ring. Refuses one that it was never given, and saying so twice."""
        vbd = self._vbds.get(handle)
        if vbd is None or caller not in vbd.rings:
            raise Refused(Status.ENOENT, f"{caller} has no ring of vbd {handle}")
        if vbd.frontend != frontend:
            raise Refused(Status.ESTALE, f"{frontend} no longer uses vbd {handle}")
        if vbd.rings[caller]:
            raise Refused(Status.EEXIST, f"vbd {handle} is connected already")
        vbd.rings[caller] = True
        return vbd

    def shared_by(self, caller: Peer, handle: VbdHandle, accused: Peer) -> Vbd:
        """The vbd whose two ends are `caller` and `accused`. Refuses any other pair: no domain may accuse a
        stranger."""
        vbd = self._vbds.get(handle)
        ends = {caller, accused}
        if vbd is None or vbd.frontend not in ends or not (ends - {vbd.frontend}) & set(vbd.rings):
            raise Refused(Status.ENOENT, f"{caller} and {accused} share no vbd {handle}")
        return vbd

    def __iter__(self) -> Iterator[Vbd]:
        return iter(self._vbds.values())
