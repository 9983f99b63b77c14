"""A hypervisor of one's own, for as long as a `with` block: what the demo, the bench and the tests stand on."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from triovisor.client import Client

__all__ = ["Hypervisor", "LabError", "start_hypervisor"]

READY = "ready:"
KEPT_LINES = 200
STOP_DEADLINE_S = 30.0


class LabError(Exception):
    """The hypervisor did not start: its own words."""


class Hypervisor:
    """A running hypervisor, its client and its run folder. `greeting`: its lines until it was ready."""

    def __init__(self, process: subprocess.Popen[str], run: Path, greeting: Sequence[str] = ()) -> None:
        self.process = process
        self.run = run
        self.greeting = greeting
        self.client = Client(run)
        self.said: deque[str] = deque(maxlen=KEPT_LINES)
        """Its last words on standard output and error since it was ready. What it does is in its log."""

    def listen(self) -> None:
        """Take what it says, to its end: a full pipe would hold it up."""
        assert self.process.stdout is not None
        self.said.extend(self.process.stdout)

    def stop(self) -> int:
        """Ask it to shut down; its exit status. One that does not obey is killed, and its domains go with it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def start_hypervisor(
    run: Path, manifest: Path | None = None, prefix: Sequence[str] = ()
) -> Iterator[Hypervisor]:
    """Start `python -m kernel` in a run folder, wait until it is ready, stop it at the end. Raises LabError.

    `prefix`: a command that executes what follows it, as `nice` does.
    """
    command = [*prefix, sys.executable, "-m", "kernel", "--run", str(run)]
    command += ["--manifest", str(manifest)] if manifest else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            hypervisor = Hypervisor(process, run, _wait_until_ready(process))
            threading.Thread(target=hypervisor.listen, daemon=True).start()
            yield hypervisor
        finally:
            if process.poll() is None:
                Hypervisor(process, run).stop()


def _wait_until_ready(process: subprocess.Popen[str]) -> list[str]:
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line.startswith(READY):
            return said
    raise LabError("the hypervisor did not start: " + " ".join(line.strip() for line in said))
