"""The rows of `make bench`: their names, what each is to reach, and whether it does."""

import enum
from dataclasses import dataclass

from msgspec import Struct

__all__ = ["GROUPS", "NAMES", "REACH", "Reach", "Results", "Row", "latency_row", "rate_row", "reaches", "time_row"]

GROUPS = {
    "block": (
        "block.randread.4k.qd1", "block.randwrite.4k.qd1", "block.randread.4k.qd32", "block.randwrite.4k.qd32",
        "block.read.1m.qd1", "block.write.1m.qd1", "block.read.1m.qd4", "block.write.1m.qd4",
        "block.fsync", "block.stall.max",
    ),
    "kills": (
        "gap.kill.cold.p50", "gap.kill.cold.p95", "gap.kill.standby.p50", "gap.kill.standby.p95",
        "ready.cold.p50", "ready.cold.p95", "ready.standby.p50", "ready.standby.p95",
    ),
    "actor": ("actor.gap.p50", "actor.gap.p95"),
    "domain": ("domain.start.p50", "domain.uss"),
    "guest": ("guest.create_to_init.p50", "guest.create20"),
}  # fmt: skip
"""Group → its rows, in the order in which they are shown."""

NAMES = tuple(name for names in GROUPS.values() for name in names)


class Row(Struct, frozen=True):
    """One figure beside its peer's; without a peer, `peer` and `ratio` are null. `ratio` above 1 is better for us."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str


class Results(Struct, frozen=True):
    """`results.json`."""

    rows: list[Row]


def rate_row(name: str, ours: float, peer: float, unit: str) -> Row:
    """More is better."""
    return Row(name, ours, peer, ours / peer, unit)


def latency_row(name: str, ours: float, peer: float, unit: str) -> Row:
    """Less is better."""
    return Row(name, ours, peer, peer / ours, unit)


def time_row(name: str, ours: float, unit: str) -> Row:
    """A figure that no peer has."""
    return Row(name, ours, None, None, unit)


class Which(enum.Enum):
    """What of a row has to reach something."""

    RATIO_AT_LEAST = "ratio ≥"
    OURS_AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Reach:
    """One bound of a row."""

    which: Which
    bound: float

    def __str__(self) -> str:
        return f"{self.which.value} {self.bound:g}"

    def holds(self, row: Row) -> bool:
        """False too where there is no ratio to look at."""
        if self.which is Which.OURS_AT_MOST:
            return row.ours <= self.bound
        return row.ratio is not None and row.ratio >= self.bound


def _ratio(bound: float) -> tuple[Reach, ...]:
    return (Reach(Which.RATIO_AT_LEAST, bound),)


def _at_most(bound: float) -> tuple[Reach, ...]:
    return (Reach(Which.OURS_AT_MOST, bound),)


REACH: dict[str, tuple[Reach, ...]] = {
    "block.randread.4k.qd1": _ratio(0.95),
    "block.randwrite.4k.qd1": _ratio(0.95),
    "block.randread.4k.qd32": _ratio(1.3),
    "block.randwrite.4k.qd32": _ratio(1.3),
    "block.read.1m.qd1": _ratio(1.0),
    "block.write.1m.qd1": _ratio(1.0),
    "block.read.1m.qd4": _ratio(0.75),
    "block.write.1m.qd4": _ratio(0.9),
    "block.fsync": _ratio(0.8),
    "block.stall.max": _at_most(10),
    "gap.kill.cold.p50": _at_most(10),
    "gap.kill.cold.p95": _at_most(20),
    "gap.kill.standby.p50": _at_most(5),
    "gap.kill.standby.p95": _at_most(12),
    "ready.cold.p50": _at_most(8),
    "ready.standby.p50": _at_most(3),
    "actor.gap.p50": _at_most(25),
    "domain.start.p50": _at_most(6),
    "domain.uss": _at_most(4),
    "guest.create_to_init.p50": _at_most(150) + _ratio(0.67),
    "guest.create20": _at_most(1.8),
}
"""What a row is to reach on a machine with two cores. A guest's start may take 1.5 times its peer's: ratio 0.67."""


def reaches(row: Row) -> bool | None:
    """Whether a row reaches all that it is to reach; None where that is nothing."""
    bounds = REACH.get(row.name)
    return None if bounds is None else all(bound.holds(row) for bound in bounds)
