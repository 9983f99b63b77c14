"""`python -m bench`: every figure beside its peer's, into bench/RESULTS.md and bench/results.json.

Exit status: 0 when all rows were measured, whatever they reach; 1 when one could not be.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.actor import measure_actor
from bench.block import measure_block
from bench.domain import measure_domain
from bench.effort import FULL, QUICK, Effort
from bench.guest import measure_guest
from bench.kills import measure_kills
from bench.load import BenchError
from bench.machine import describe_machine
from bench.report import render_json, render_page, render_text
from bench.rows import GROUPS, Row
from kernel.abi.run import new_run
from triovisor.client import TvError
from triovisor.lab import LabError
from triovisor.provision.files import SetupError

__all__ = ["main"]

FOLDER = Path(__file__).parent

Measure = Callable[[Path, Effort, Callable[[str], None]], list[Row]]
MEASURES: dict[str, Measure] = {
    "block": measure_block,
    "kills": measure_kills,
    "actor": measure_actor,
    "domain": measure_domain,
    "guest": measure_guest,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what a full run found."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    machine = describe_machine()
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    try:
        rows = _measure(options.only or list(GROUPS), QUICK if options.quick else FULL, say)
    except (BenchError, LabError, SetupError, TvError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(render_text(rows))
    if options.into is not None:
        _write(rows, machine, options.into)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that all runs, and no figure")
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="these rows alone; may be repeated")
    parser.add_argument("--into", type=Path, help="where to write; a full run writes into bench/ without it")
    options = parser.parse_args(arguments)
    if options.into is None and not options.quick and not options.only:
        options.into = FOLDER
    return options


def _measure(groups: Sequence[str], effort: Effort, say: Callable[[str], None]) -> list[Row]:
    run = new_run()
    run.mkdir(parents=True)
    say(f"logs of every hypervisor: {run}")
    rows: list[Row] = []
    for group in groups:
        rows += MEASURES[group](run, effort, say)
    return rows


def _write(rows: Sequence[Row], machine: Sequence[tuple[str, str]], into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    (into / "results.json").write_bytes(render_json(rows))
    notes = (FOLDER / "NOTES.md").read_text()
    command = " ".join(["python -m bench", *sys.argv[1:]])
    (into / "RESULTS.md").write_text(render_page(rows, machine, command, notes))
    print(f"written: {into / 'RESULTS.md'}, {into / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main())
