"""Our side: a hypervisor in a run folder of its own, with a manifest of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.events import LogTail
from bench.load import BenchError
from triovisor.client import Client
from triovisor.lab import start_hypervisor

__all__ = ["DRIVER", "Ours", "start_ours"]

DRIVER = "blkback"

MANIFEST = """\
[[driver]]
name = "{driver}"
role = "drivers.blkback.main"
standby = {standby}
{cpus}
# Killed a hundred times: the back-off is not what is measured.
restart = {{ free_deaths = 1000000, max_deaths = 1000000 }}
"""


@dataclass(frozen=True, slots=True)
class Ours:
    """A running hypervisor. `log` has its own events."""

    pid: int
    client: Client
    run: Path
    log: LogTail

    @contextmanager
    def on_cpu(self, cpu: int) -> Iterator[None]:
        """Keep all its threads on one CPU."""
        allowed = os.sched_getaffinity(self.pid)
        self._keep_on({cpu})
        try:
            yield
        finally:
            self._keep_on(allowed)

    def _keep_on(self, cpus: set[int]) -> None:
        for task in os.listdir(f"/proc/{self.pid}/task"):
            os.sched_setaffinity(int(task), cpus)

    def guest_log(self, name: str) -> LogTail:
        """The events of a guest's first incarnation."""
        return LogTail(self.run / "log" / f"{name}.1.jsonl")

    def output_of(self, guest: str, argv: list[str]) -> bytes:
        """What a command in a guest prints. Raises BenchError where it fails."""
        result = self.client.exec(guest, argv)
        if result.status != 0:
            raise BenchError(f"{' '.join(argv)} in our guest: {result.status} {result.why} {result.stderr!r}")
        return result.stdout


@contextmanager
def start_ours(run: Path, *, standby: bool, driver_cpu: int | None = None, more: str = "") -> Iterator[Ours]:
    """Start a hypervisor with one disk driver, and `more` in its manifest. Raises LabError."""
    run.mkdir(parents=True)
    cpus = "" if driver_cpu is None else f'cpus = "{driver_cpu}"'
    manifest = run / "boot.toml"
    manifest.write_text(MANIFEST.format(driver=DRIVER, standby=str(standby).lower(), cpus=cpus) + more)
    with start_hypervisor(run, manifest) as hypervisor:
        yield Ours(hypervisor.process.pid, hypervisor.client, run, LogTail(run / "log" / "hypervisor.1.jsonl"))
