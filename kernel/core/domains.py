"""The domain table: who exists, in which incarnation, and what each may become."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from kernel.abi.guest_config import DomainState
from kernel.abi.ids import DOM0, DomId, Generation, Peer
from kernel.abi.status import KernelBug, Refused, Status
from kernel.core.allowance import Allowance

__all__ = ["DomainRecord", "DomainTable", "Kind", "Life"]

MAX_DOMAINS = 2048
"""Live at once. Each costs the hypervisor a control socket, a pidfd and two pipes: 8,192 of the 65,536
descriptors it asks for."""


class Kind(Enum):
    """What a domain is, for the privilege table."""

    DOM0 = "dom0"
    DRIVER = "driver"
    GUEST = "guest"


class Life(Enum):
    """Where one incarnation is. It never goes back: what is restarted is a new incarnation."""

    CLONED = "cloned"
    RUNNING = "running"
    ENDING = "ending"
    GONE = "gone"


_NEXT = {
    Life.CLONED: {Life.RUNNING, Life.ENDING, Life.GONE},
    Life.RUNNING: {Life.ENDING, Life.GONE},
    Life.ENDING: {Life.GONE},
    Life.GONE: set(),
}


_NONE_YET = Generation(0)

BURST_S = 0.25
"""Of the hypervisor's time at once: a driver that reconnects eight hundred rings takes less."""

_SHARES = {Kind.DOM0: 1.0, Kind.DRIVER: 0.1, Kind.GUEST: 0.05}
"""Of the hypervisor's time in the long run, whatever a domain asks for. The administrator waits for nobody's flood."""

STORE_CONNECTS, STORE_CONNECTS_PER_S = 40.0, 10.0
"""A store that died is back within milliseconds, and dies no oftener."""

REFUSALS_LOGGED, REFUSALS_LOGGED_PER_S = 50.0, 1.0
"""A domain that asks for what it may not have a thousand times a second must not drown what others are logged for."""


@dataclass(slots=True)
class DomainRecord:
    """One domain. `lives` has its incarnations that are not gone; `state` is what an administrator is told.

    `time` (seconds of the hypervisor's), `store_connects` and `refusals` (that are logged) are its own over all its
    incarnations.
    """

    domid: DomId
    name: str
    kind: Kind
    state: DomainState = DomainState.STARTING
    generation: Generation = _NONE_YET
    lives: dict[Generation, Life] = field(default_factory=dict)
    time: Allowance = field(init=False)
    store_connects: Allowance = field(default_factory=lambda: Allowance(STORE_CONNECTS, STORE_CONNECTS_PER_S))
    refusals: Allowance = field(default_factory=lambda: Allowance(REFUSALS_LOGGED, REFUSALS_LOGGED_PER_S))
    unlogged_refusals: int = 0

    def __post_init__(self) -> None:
        self.time = Allowance(BURST_S, _SHARES[self.kind])


class DomainTable:
    """All domains of a run, by domid. A number is never used again; a name is, once its bearer is gone."""

    def __init__(self) -> None:
        self._records: dict[DomId, DomainRecord] = {}
        self._next = DOM0

    def add(self, name: str, kind: Kind) -> DomainRecord:
        """A new domain, with no incarnation yet. The first is Dom0. Refuses a name that is taken (EEXIST)."""
        self._check_free(name)
        if len(self._records) >= MAX_DOMAINS:
            raise Refused(Status.ENOSPC, f"{MAX_DOMAINS} domains exist: destroy one first")
        if (kind is Kind.DOM0) != (self._next == DOM0):
            raise KernelBug("Dom0 is the first domain, and the only one of its kind")
        record = DomainRecord(self._next, name, kind)
        self._records[record.domid] = record
        self._next = DomId(self._next + 1)
        return record

    def incarnate(self, domid: DomId) -> Peer:
        """The next incarnation of a domain, cloned but not yet running."""
        record = self[domid]
        record.generation = Generation(record.generation + 1)
        record.lives[record.generation] = Life.CLONED
        return Peer(domid, record.generation)

    def advance(self, peer: Peer, life: Life) -> None:
        """Move an incarnation on. Raises KernelBug for a step that its life does not have."""
        record = self[peer.domid]
        now = record.lives.get(peer.generation, Life.GONE)
        if life not in _NEXT[now]:
            raise KernelBug(f"incarnation {peer} cannot go from {now.value} to {life.value}")
        if life is Life.GONE:
            del record.lives[peer.generation]
        else:
            record.lives[peer.generation] = life

    def rename(self, domid: DomId, name: str) -> None:
        """Give a domain another name. Refuses one that is taken (EEXIST)."""
        self._check_free(name)
        self[domid].name = name

    def _check_free(self, name: str) -> None:
        if any(record.name == name for record in self._records.values()):
            raise Refused(Status.EEXIST, f"a domain named {name!r} exists: choose another name, or tv destroy {name}")

    def remove(self, domid: DomId) -> None:
        """Forget a domain whose incarnations are all gone."""
        if self[domid].lives:
            raise KernelBug(f"domain {domid} is removed while it lives")
        del self._records[domid]

    def check_alive(self, peer: Peer) -> None:
        """Refuse a peer that does not exist (ENOENT) or whose incarnation has ended (ESTALE)."""
        record = self._records.get(peer.domid)
        if record is None:
            raise Refused(Status.ENOENT, f"there is no domain {peer.domid}")
        if peer.generation not in record.lives:
            raise Refused(Status.ESTALE, f"incarnation {peer} of {record.name} has ended")

    def find(self, domid: DomId) -> DomainRecord:
        """The record of a domain that a caller named. Refuses one that does not exist (ENOENT)."""
        if domid not in self._records:
            raise Refused(Status.ENOENT, f"there is no domain {domid}")
        return self._records[domid]

    def __getitem__(self, domid: DomId) -> DomainRecord:
        return self._records[domid]

    def __contains__(self, domid: DomId) -> bool:
        return domid in self._records

    def __iter__(self) -> Iterator[DomainRecord]:
        return iter(self._records.values())
