"""Figures from samples, and the pause of each kill from what a load in the guest saw. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Gap", "Window", "gaps_of_kills", "percentile"]


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` (0 … 1) of all samples do not exceed. Raises ValueError for none."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which the guest's load had no completion."""

    begin_s: float
    end_s: float

    @property
    def ms(self) -> float:
        return (self.end_s - self.begin_s) * 1000


@dataclass(frozen=True, slots=True)
class Window:
    """From a kill until its successor served."""

    begin_s: float
    end_s: float


def gaps_of_kills(kills: Sequence[Window], gaps: Sequence[Gap], skew_s: float, shortest_ms: float) -> list[float]:
    """For each kill the longest gap, in ms, that touches its window widened by `skew_s` on both sides.

    `skew_s`: how far the two clocks may be apart. It makes a gap longer that has another cause, never shorter.
    `shortest_ms`: below it gaps were not listed, so a kill without a gap counts as so much.
    """
    return [
        max(
            (gap.ms for gap in gaps if gap.end_s >= kill.begin_s - skew_s and gap.begin_s <= kill.end_s + skew_s),
            default=shortest_ms,
        )
        for kill in kills
    ]
