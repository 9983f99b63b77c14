"""Whether a guest stands still, for whom, and what its actor is to be told about that.

A state machine without clock or processes: events in, orders out. At most one order is under way at a time, so what
an administrator asks for a thousand times a second waits here, and not in the guest's channel.
"""

from dataclasses import dataclass, field
from enum import Enum

from kernel.abi.ids import DomId

__all__ = ["Ask", "Pausing", "Stand"]


class Stand(Enum):
    """What is known of a guest's operating system. The two in the middle wait for its actor's answer."""

    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    UNPAUSING = "unpausing"


@dataclass(frozen=True, slots=True)
class Ask:
    """Tell the guest's actor to have its operating system stand still, or go on."""

    sequence: int
    paused: bool


_ANSWERED = {
    (Stand.PAUSING, True): Stand.PAUSED,
    (Stand.PAUSING, False): Stand.RUNNING,
    (Stand.UNPAUSING, True): Stand.RUNNING,
    (Stand.UNPAUSING, False): Stand.PAUSED,
}
"""By whether the actor could do as it was told."""


@dataclass(slots=True)
class Pausing:
    """One incarnation of a guest. It stands still while it has `holders`: Dom0 for the administrator, and each driver
    of it that is given up. Feed it `hold`, `release` and `answered`; obey its orders."""

    holders: set[DomId] = field(default_factory=set)
    stand: Stand = Stand.RUNNING
    failure: str = ""
    """Why the last order came to nothing."""
    _sequence: int = 0

    @property
    def settled(self) -> bool:
        """No order is under way."""
        return self.stand in (Stand.RUNNING, Stand.PAUSED)

    def hold(self, holder: DomId) -> Ask | None:
        """It is to stand still for this one too."""
        self.holders.add(holder)
        return self._next()

    def release(self, holder: DomId) -> Ask | None:
        """It need not for this one any more."""
        self.holders.discard(holder)
        return self._next()

    def answered(self, sequence: int, why: str) -> Ask | None:
        """The actor did as it was told, or says `why` not. A guest that cannot be paused is held by nobody; one that
        cannot be unpaused is tried again when the next one asks."""
        if self.settled or sequence != self._sequence:
            return None
        self.stand, self.failure = _ANSWERED[self.stand, not why], why
        if why and self.stand is Stand.RUNNING:
            self.holders.clear()
        return None if why else self._next()

    def again(self) -> Ask | None:
        """The actor is another process, which has heard nothing: its last order once more, where that is under way or
        has the guest stand still."""
        return None if self.stand is Stand.RUNNING else Ask(self._sequence, self.stand is not Stand.UNPAUSING)

    def _next(self) -> Ask | None:
        wanted = bool(self.holders)
        if not self.settled or wanted == (self.stand is Stand.PAUSED):
            return None
        self.stand = Stand.PAUSING if wanted else Stand.UNPAUSING
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        return Ask(self._sequence, wanted)
