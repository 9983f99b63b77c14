"""`python -m kernel`: boot a hypervisor. `python -m kernel doctor`: say what this host has."""

import argparse
import contextlib
import sys
from pathlib import Path

import trio

from kernel import doctor
from kernel.boot import run_hypervisor
from kernel.manifest import DEFAULT_MANIFEST, ManifestError, load_manifest
from kernel.run_folder import RunFolderError, open_run_folder
from kernel.spawn import SpawnError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a clean shutdown, 1 for an error said in one line, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    if options.command == "doctor":
        return doctor.main(json=options.json)
    try:
        manifest = load_manifest(options.manifest)
        run = open_run_folder(options.run)
    except (ManifestError, RunFolderError) as error:
        print(f"kernel: {error}", file=sys.stderr)
        return 1
    status = 0
    try:
        trio.run(run_hypervisor, manifest, run, _say, strict_exception_groups=True)
    except* SpawnError as group:
        print(f"kernel: {_first(group)}: python -m kernel doctor says what this host lacks", file=sys.stderr)
        status = 1
    finally:
        run.close()
    return status


def _first(group: BaseExceptionGroup[SpawnError]) -> BaseException:
    """The first error in a group of groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _say(line: str) -> None:
    """To whoever watches. Nobody may be left to: that is no reason to end."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernel", description="The Triovisor hypervisor.")
    parser.add_argument(
        "--manifest", type=Path, default=DEFAULT_MANIFEST, help="boot manifest (TOML); default: %(default)s"
    )
    parser.add_argument("--run", type=Path, help="run folder; default: a new one under $TRIOVISOR_RUNS or ./runs")
    commands = parser.add_subparsers(dest="command")
    check = commands.add_parser(
        "doctor", help="say what this host has, what is missing, what that costs, what mends it"
    )
    check.add_argument("--json", action="store_true", help="for scripts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
