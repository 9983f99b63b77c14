"""`python -m bench.profile`: flame graphs (py-spy) of the block path under load, and of a hypervisor with 200 domains.

SVG files, for a browser: `actor.svg` and `driver.svg` while a guest reads and writes at depth 32; `hypervisor.svg`
while 200 native guests are created, and then asked for a sign of life every second.
"""

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.block import EXTRA, GUEST, JOBS, MEMORY_MIB, allocated_image
from bench.crowd import BUSY_HEARTBEAT, Crowd
from bench.load import BenchError
from bench.native import PROGRAM
from bench.ours import DRIVER, start_ours
from bench.placement import SERVER_CPU, SYSTEM_CPU
from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.run import new_run
from triovisor.client import TvError
from triovisor.lab import LabError

__all__ = ["main"]

FOLDER = Path(__file__).parents[1] / "build" / "profile"
DOMAINS = 200
SECONDS = 10
RATE = 500
"""Samples a second of each thread that is on a CPU. More would slow what is sampled."""

SAMPLER_S = 30.0
"""For py-spy to write its graph, beyond the time for which it samples."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the graphs; the exit status."""
    options = _parse(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    run = new_run()
    run.mkdir(parents=True)
    try:
        _block_path(run, options)
        _hypervisor(run, options)
    except (BenchError, LabError, TvError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder for the graphs (default: build/profile)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each graph")
    parser.add_argument("--domains", type=int, default=DOMAINS, help="native guests beside the hypervisor")
    return parser.parse_args(arguments)


def _block_path(run: Path, options: argparse.Namespace) -> None:
    jobs = [job for job in JOBS if job.depth > 1 and job.size == "4k"]
    with start_ours(run / "block", standby=False, driver_cpu=SERVER_CPU) as hypervisor, allocated_image() as image:
        disk = DiskConfig(target=str(image), vdev="vda", backend=DRIVER)
        hypervisor.client.create(
            GuestConfig(name=GUEST, memory=MEMORY_MIB, cpus=str(SYSTEM_CPU), disk=[disk], extra=EXTRA)
        )
        actor = _actor_of(hypervisor.client.info(GUEST).pid)
        driver = next(each.pid for each in hypervisor.client.drivers() if each.name == DRIVER)

        with _sampled(actor, "actor", options), _sampled(driver, "driver", options):
            for job in jobs:
                hypervisor.output_of(GUEST, job.argv(options.seconds / len(jobs)))


def _actor_of(reaper: int | None) -> int:
    """The first child of a guest's reaper."""
    return int(Path(f"/proc/{reaper}/task/{reaper}/children").read_text().split()[0])


def _hypervisor(run: Path, options: argparse.Namespace) -> None:
    program = run / "crowd.py"
    program.write_text(PROGRAM)
    with (
        start_ours(run / "crowd", standby=False, more=BUSY_HEARTBEAT) as hypervisor,
        _sampled(hypervisor.pid, "hypervisor", options),
    ):
        Crowd(hypervisor, program).grow_at_once(options.domains)


@contextmanager
def _sampled(pid: int | None, name: str, options: argparse.Namespace) -> Iterator[None]:
    """Sample a process for as long as was asked for, which begins before the body and may end after it. Raises
    BenchError."""
    graph = options.into / f"{name}.svg"
    py_spy = Path(sysconfig.get_path("scripts")) / "py-spy"
    command = [str(py_spy), "record", "--pid", str(pid), "--duration", str(options.seconds), "--rate", str(RATE)]
    with subprocess.Popen(
        [*command, "--format", "flamegraph", "--output", str(graph)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as sampler:  # fmt: skip
        assert sampler.stdout is not None
        sampler.stdout.readline()  # it has begun, or says why not
        try:
            yield
            said, _ = sampler.communicate(timeout=options.seconds + SAMPLER_S)
        except BaseException:
            sampler.kill()
            raise
    if sampler.returncode:
        raise BenchError(f"py-spy cannot sample the {name}: {said.strip().splitlines()[-1:]}")
    print(graph)


if __name__ == "__main__":
    sys.exit(main())
