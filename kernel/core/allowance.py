"""An allowance: so much at once, and so much a second. What a domain does beyond it waits, or is left out."""

from dataclasses import dataclass

__all__ = ["Allowance"]


@dataclass(slots=True)
class Allowance:
    """`burst` may be spent at once; it fills up again by `per_s` each second. Times in seconds, of any one clock."""

    burst: float
    per_s: float
    _left: float = 0.0
    _filled_s: float | None = None

    def spend(self, amount: float, now_s: float) -> float:
        """Spend it, in debt if need be. Seconds until the debt is paid: 0 where there is none."""
        self._fill(now_s)
        self._left -= amount
        return max(0.0, -self._left / self.per_s)

    def has(self, amount: float, now_s: float) -> bool:
        """Whether so much is left; then it is spent."""
        self._fill(now_s)
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def _fill(self, now_s: float) -> None:
        grown = self.burst if self._filled_s is None else self._left + (now_s - self._filled_s) * self.per_s
        self._left, self._filled_s = min(self.burst, grown), now_s
