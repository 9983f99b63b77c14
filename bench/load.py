"""The load in the guest (`triovisor/provision/guest/load.c`): what it is told, and what it says."""

import msgspec
from msgspec import Struct

__all__ = ["BenchError", "LoadReport", "parse_report"]


class BenchError(Exception):
    """A figure could not be taken, or would not be true: one line that says why."""


class LoadReport(Struct, frozen=True):
    """Its line of JSON; `gaps` as pairs of µs from the start to a gap's end, and µs that it lasted."""

    operations: int
    iops: float
    mb_s: float
    p50_us: float
    gap_us: float
    errors: int
    corrupt: int = 0
    gaps: list[tuple[int, int]] = []


def parse_report(output: bytes) -> LoadReport:
    """The report in what `load` printed. Raises BenchError for none, for I/O errors and for wrong data."""
    lines = output.splitlines()
    try:
        report = msgspec.json.decode(lines[-1], type=LoadReport)
    except (IndexError, msgspec.DecodeError) as error:
        raise BenchError(f"the load in the guest gave no report: {output[-200:]!r}") from error
    if report.errors or report.corrupt:
        raise BenchError(f"the guest saw {report.errors} I/O errors and {report.corrupt} corrupt blocks: figures void")
    return report
