"""Results as a page and as data. No I/O: text in, text out."""

from collections.abc import Sequence

import msgspec

from bench.rows import NAMES, REACH, Results, Row, reaches

__all__ = ["render_json", "render_page", "render_text"]

HEAD = """\
# Figures

Written by `make bench`; the text below the table is [NOTES.md](NOTES.md). Each figure and its peer's are of one run, in
turns. A ratio above 1 is better for us.
"""


def render_json(rows: Sequence[Row]) -> bytes:
    """`results.json`."""
    return msgspec.json.format(msgspec.json.encode(Results([_rounded(row) for row in _sorted(rows)]))) + b"\n"


def render_page(rows: Sequence[Row], machine: Sequence[tuple[str, str]], command: str, notes: str) -> str:
    """`RESULTS.md`."""
    facts = [*machine, ("command", f"`{command}`")]
    return "\n".join(
        [
            HEAD,
            *(f"- {what}: {which}" for what, which in facts),
            "",
            "| Row | ours | peer | ratio | reach | |",
            "| --- | ---: | ---: | ---: | --- | --- |",
            *(f"| {' | '.join(_cells(row))} |" for row in _sorted(rows)),
            "",
            notes.strip(),
            "",
        ]
    )


def render_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    table = [_cells(row) for row in _sorted(rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _cells(row: Row) -> list[str]:
    mark = {True: "✓", False: "✗", None: ""}[reaches(row)]
    peer = "–" if row.peer is None else f"{_show(row.peer)} {row.unit}"
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
    reach = ", ".join(map(str, REACH.get(row.name, ())))
    return [row.name, f"{_show(row.ours)} {row.unit}", peer, ratio, reach, mark]


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: NAMES.index(row.name))


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rounded(row: Row) -> Row:
    """To four digits."""
    peer = None if row.peer is None else _round(row.peer)
    ratio = None if row.ratio is None else _round(row.ratio)
    return Row(row.name, _round(row.ours), peer, ratio, row.unit)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
