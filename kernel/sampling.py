"""What a hung domain is doing: its threads as `py-spy` sees them, its Trio tasks as it sees itself, both into
the log."""

import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import trio

from kernel.incarnation import who
from kernel.machine import Incarnation, Machine

__all__ = ["sample"]

SAMPLE_DEADLINE_S = 2.0
"""`py-spy dump` takes 15 ms; on a host in trouble the guest does not wait longer than this for the evidence."""

TASKS_GRACE_S = 0.05
"""For the signal handler of the hung domain to write its task tree, if its interpreter still turns."""

MAX_DUMP_BYTES = 3000
"""So that one log line holds it."""


async def sample(machine: Machine, incarnation: Incarnation) -> None:
    """Log one `domain.sampled`, and ask for a `domain.tasks_dumped`. Never raises: evidence is not worth a
    guest's time."""
    if incarnation.child is None:
        return
    try:
        signal.pidfd_send_signal(incarnation.child.pidfd, signal.SIGUSR2)
    except ProcessLookupError:
        return
    for pid in _interpreters(incarnation.child.pid):
        dump = await _py_spy_dump(pid)
        machine.log.warning("domain.sampled", **who(incarnation), threads=dump[:MAX_DUMP_BYTES].splitlines())
    await trio.sleep(TASKS_GRACE_S)


def _interpreters(pid: int) -> list[int]:
    """The domain's first process, and its children that run Python too: a guest's actor is its reaper's child."""
    try:
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        own = os.readlink(f"/proc/{pid}/exe")
        return [pid, *(child for child in children if os.readlink(f"/proc/{child}/exe") == own)]
    except OSError:
        return [pid]


async def _py_spy_dump(pid: int) -> str:
    py_spy = Path(sysconfig.get_path("scripts")) / "py-spy"
    with trio.move_on_after(SAMPLE_DEADLINE_S):
        try:
            command = [str(py_spy), "dump", "--nonblocking", "--pid", str(pid)]
            result = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            return f"py-spy did not run: {error}"
        return result.stdout.decode(errors="replace")
    return f"py-spy did not answer in {SAMPLE_DEADLINE_S} s"
