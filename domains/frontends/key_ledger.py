"""Which keys are in the guest's line: what makes a key that is sent twice be typed once. Decides only."""

from dataclasses import dataclass

from kernel.abi.io.consif import BEYOND

__all__ = ["KeyLedger", "Keys", "RingBroken"]


class RingBroken(Exception):
    """The backend broke the console ring's rules. `evidence` is what was found, in words."""

    def __init__(self, what: str, evidence: str) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that were not typed before."""

    data: bytes


@dataclass(slots=True)
class KeyLedger:
    """`taken` keys of `session` are in the guest's line; none of any other is still to come."""

    session: int = 0
    taken: int = 0

    def look(self, session: int, number: int, data: bytes) -> Keys:
        """What is new in `data`, whose first key has this number. A session that is new begins at 0. Raises RingBroken
        where keys are left out."""
        if not 0 < session < BEYOND:
            raise RingBroken("keys of no session", f"session {session}, number {number}")
        taken = self.taken if session == self.session else 0
        if number > taken:
            raise RingBroken("keys are left out", f"session {session}: number {number}, taken {taken}")
        self.session, self.taken = session, taken
        return Keys(data[taken - number :])

    def took(self, count: int) -> None:
        """The next `count` keys of the session are in the guest's line."""
        self.taken += count
