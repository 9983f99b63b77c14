"""One driver domain over its incarnations: which serves, which stands by, and what a death leads to.

A state machine without clock or processes: events in, orders out.
"""

from dataclasses import dataclass, field

from kernel.abi.guest_config import DomainState
from kernel.abi.ids import Peer
from kernel.core.restart import GiveUp, RestartPolicy, decide

__all__ = ["STANDBY_AFTER_S", "Abandon", "Activate", "Driver", "End", "Order", "Spawn", "Withdraw"]

STANDBY_AFTER_S = 0.05
"""After an incarnation has taken over, the next standby is cloned only so much later: to clone, jail and start it takes
some ten milliseconds of CPU, and the guests of the one that died go first."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Clone an incarnation after `delay_s`. It becomes active if none is, else the standby. `gives_way`: the delay is
    for the guests' sake, and no back-off."""

    delay_s: float
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class Activate:
    """Hand the images to this incarnation: every predecessor is gone. `take_published` as `BackendActive` has it."""

    peer: Peer
    take_published: bool


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the frontends that this incarnation is gone."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Abandon:
    """The driver is given up."""

    deaths: int
    window_s: float


@dataclass(frozen=True, slots=True)
class End:
    """End this incarnation: the administrator wants another in its place, or no standby."""

    peer: Peer


Order = Spawn | Activate | Withdraw | Abandon | End


@dataclass(slots=True)
class Driver:
    """A driver domain. Feed it `boot`, `cloned`, `accused`, `died`, `restart`, `keep_standby`, in the order in which
    they happen; obey its orders in order."""

    policy: RestartPolicy
    wants_standby: bool
    active: Peer | None = None
    standby: Peer | None = None
    state: DomainState = DomainState.STARTING
    spawning: int = 0
    restarts: int = 0
    deaths_s: list[float] = field(default_factory=list)
    _faulted: bool = False
    _had_active: bool = False
    _gave_way: bool = False
    _replaced: Peer | None = None
    _dismissed: Peer | None = None
    _exhausted: bool = False

    def boot(self) -> list[Order]:
        """First of all."""
        return self._fill(0.0)

    def cloned(self, peer: Peer) -> list[Order]:
        """An incarnation that `Spawn` asked for exists. It takes packets, though its code may not run yet."""
        self.spawning -= 1
        self._gave_way = self._gave_way and self.spawning > 0
        if self.active is None:
            successor = self._had_active
            return [self._activate(peer), *self._fill(0.0, gives_way=successor)]
        self.standby = peer
        return [] if self.wants_standby else self._dismiss()

    def keep_standby(self, wanted: bool) -> list[Order]:
        """The administrator wants a standby from now on, or none. One that is dismissed is no death."""
        self.wants_standby = wanted
        return self._fill(0.0) if wanted else self._dismiss()

    def _dismiss(self) -> list[Order]:
        if self.standby is None:
            return []
        self._dismissed = self.standby
        return [End(self.standby)]

    def accused(self, peer: Peer) -> None:
        """The incarnation broke the ABI. It is being ended; what it published last is not to be believed."""
        if peer == self.active:
            self._faulted = True

    def died(self, peer: Peer, now_s: float) -> list[Order]:
        """The incarnation is gone with all its threads."""
        orders: list[Order] = [Withdraw(peer)]
        promoted = None
        if peer == self.standby:
            self.standby = None
        elif peer == self.active:
            self.active = None
            self.restarts += 1
            if self.standby is not None:
                promoted, self.standby = self.standby, None
                orders.append(self._activate(promoted))
        if peer in (self._replaced, self._dismissed):
            return orders + self._fill(0.0, gives_way=promoted is not None)
        return orders + self._after_death(now_s, gives_way=promoted is not None)

    def restart(self) -> list[Order]:
        """The administrator wants another incarnation to serve. Its deaths are forgotten, and the one that makes room
        is no death."""
        self.deaths_s.clear()
        self._exhausted = False
        if self.active is not None:
            self._replaced = self.active
            return [End(self.active)]
        if self.state is DomainState.GIVEN_UP:
            self.state = DomainState.STARTING
        return self._fill(0.0)

    def _activate(self, peer: Peer) -> Order:
        take_published = self._had_active and not self._faulted
        self.active, self._faulted, self._had_active = peer, False, True
        self.state = DomainState.RUNNING
        return Activate(peer, take_published)

    def _after_death(self, now_s: float, *, gives_way: bool) -> list[Order]:
        self.deaths_s = [*(d for d in self.deaths_s if d > now_s - self.policy.window_s), now_s]
        decision = decide(self.policy, self.deaths_s)
        self._exhausted = isinstance(decision, GiveUp)
        if isinstance(decision, GiveUp):
            return self._give_up(decision)
        return self._fill(decision.delay_s, gives_way=gives_way)

    def _give_up(self, decision: GiveUp) -> list[Order]:
        """Not while one serves, or is still to come: then only the wish for a further one is given up, and that one is
        the last."""
        if self.active is not None or self.spawning:
            return []
        self.state = DomainState.GIVEN_UP
        return [Abandon(decision.deaths, decision.window_s)]

    def _fill(self, delay_s: float, *, gives_way: bool = False) -> list[Order]:
        """Clones still wanted. One at a time, so that a standby never races the active one it stands by for; but where
        none serves, one that gives way is not waited for."""
        standby_wanted = self.wants_standby and self.standby is None and not self._exhausted
        wanted = self.active is None or standby_wanted
        waited_for = self.spawning and not (self.active is None and self._gave_way and self.spawning == 1)
        if not wanted or waited_for or self.state is DomainState.GIVEN_UP:
            return []
        if self.active is None:
            self.state = DomainState.STARTING
        self.spawning += 1
        if not gives_way or delay_s >= STANDBY_AFTER_S:
            return [Spawn(delay_s)]
        self._gave_way = True
        return [Spawn(STANDBY_AFTER_S, gives_way=True)]
