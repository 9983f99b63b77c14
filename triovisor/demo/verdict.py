"""What the demo's run came to, as data and as a table."""

import statistics
from collections.abc import Sequence

from msgspec import Struct
from rich.table import Table

from triovisor.demo.faults import Strike
from triovisor.demo.writer import Outage, Written

__all__ = ["Milliseconds", "Verdict", "judge", "outage_of", "table"]

SKEW_S = 0.02
"""The writer's clock is known from when its first words came: not exactly."""


class Milliseconds(Struct):
    median: float
    p95: float
    max: float


class Verdict(Struct):
    """`verdict.json`. `ok`: faults struck, nothing acknowledged was lost, the guest saw no error."""

    acknowledged: int
    verified: int
    lost: int
    guest_io_errors: int
    restarts: int
    outage_ms: Milliseconds
    ok: bool


def outage_of(strike: Strike, outages: Sequence[Outage]) -> float:
    """The longest record that a fault held up, in milliseconds: one that was on its way between the fault and
    the recovery."""
    begins_s, ends_s = strike.at_s - SKEW_S, strike.over_s + SKEW_S
    return max((o.ms for o in outages if begins_s <= o.at_s + o.ms / 1000 and o.at_s <= ends_s), default=0.0)


def judge(
    written: Written, found: dict[str, int], guest_errors: int, strikes: Sequence[Strike], expected: int
) -> Verdict:
    """A run in which a fault did not strike is not ok, however well it went."""
    lost = found["lost"] + found["corrupt"]
    errors = written.io_errors + guest_errors
    outages = sorted(outage_of(strike, written.outages) for strike in strikes) or [0.0]
    struck = len(strikes) == expected and expected > 0
    return Verdict(
        acknowledged=written.acknowledged,
        verified=found["verified"],
        lost=lost,
        guest_io_errors=errors,
        restarts=len(strikes),
        outage_ms=Milliseconds(
            median=round(statistics.median(outages), 1),
            p95=round(outages[min(len(outages) - 1, int(0.95 * len(outages)))], 1),
            max=round(outages[-1], 1),
        ),
        ok=struck and lost == 0 and errors == 0 and found["verified"] == written.acknowledged > 0,
    )


def table(verdict: Verdict) -> Table:
    """The closing table."""
    rows = Table(title="Verdict", show_header=False, title_justify="left")
    rows.add_row("records acknowledged", f"{verdict.acknowledged:,}")
    rows.add_row("records verified after the reboot", f"{verdict.verified:,}")
    rows.add_row("records lost", _good(verdict.lost == 0, f"{verdict.lost:,}"))
    rows.add_row("I/O errors in the guest", _good(verdict.guest_io_errors == 0, str(verdict.guest_io_errors)))
    rows.add_row("restarts of the disk driver", str(verdict.restarts))
    outage = verdict.outage_ms
    rows.add_row("outage that the guest saw", f"median {outage.median:.1f} ms, worst {outage.max:.1f} ms")
    rows.add_row("all is well" if verdict.ok else "NOT WELL", _good(verdict.ok, "yes" if verdict.ok else "no"))
    return rows


def _good(good: bool, text: str) -> str:
    return f"[{'green' if good else 'bold red'}]{text}[/]"
