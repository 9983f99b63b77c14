"""A guest's actor as the host's /proc shows it, and load that is the guest's own: a command of `tv exec` ends with its
actor."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from tests.promises.events import wait_until
from tests.promises.lab import Lab
from tests.promises.load import FOREVER_S, Report

__all__ = ["actor_below", "actor_of", "kill_actor", "own_load", "wait_actor_below", "wait_actor_serves"]

REPORT, ERRORS = "/tmp/report", "/tmp/errors"


def actor_below(reaper: int) -> int:
    """The pid of a reaper's child that runs its program too and is not the undertaker; the system's first process
    is one too until it executes the kernel. 0 while there is none."""
    try:
        program = Path(f"/proc/{reaper}/cmdline").read_bytes()
        for child in map(int, Path(f"/proc/{reaper}/task/{reaper}/children").read_text().split()):
            runs_it = program and Path(f"/proc/{child}/cmdline").read_bytes() == program
            if runs_it and Path(f"/proc/{child}/comm").read_text() != "undertaker\n":
                return child
    except OSError:
        return 0
    return 0


def wait_actor_below(reaper: int) -> int:
    """The same, waited for."""
    actor: int = wait_until(lambda: actor_below(reaper), f"an actor of reaper {reaper}")
    return actor


def actor_of(lab: Lab, guest: str) -> int:
    """The pid of a guest's actor. 0 while there is none."""
    return actor_below(lab.client.info(guest).pid or 0)


def kill_actor(lab: Lab, guest: str) -> int:
    """SIGKILL to a guest's actor. The event number of the hypervisor's log from which on its successor is heard of."""
    reaper = lab.client.info(guest).pid or 0
    since = lab.log.mark()
    os.kill(wait_actor_below(reaper), signal.SIGKILL)
    return since


def wait_actor_serves(lab: Lab, guest: str, since: int, disks: int = 1) -> None:
    """Wait until an actor has taken over, with a ring of each disk at the active backend."""
    lab.log.wait("domain.soft_reset", since, name=guest)
    wait_until(lambda: len(lab.log.all("vbd.connected", since)) >= disks, f"rings of {guest}'s next actor")


@contextmanager
def own_load(
    lab: Lab, guest: str, vdev: str = "vda", *, op: str = "verify", depth: int = 16, span: str = "4m"
) -> Iterator[None]:
    """Verified load that goes on without anybody outside of the guest; it must have seen no error and no wrong data."""
    words = f"op={op} size=4k depth={depth} span={span} seconds={FOREVER_S} gaps_us=1000000"
    into = f"{REPORT}.{vdev}"
    script = f": > {into}; setsid load /dev/{vdev} {words} < /dev/null > {into} 2> {ERRORS}.{vdev} & echo $!"
    lab.run_in(guest, "sh", "-c", script)
    wait_until(lambda: lab.run_in(guest, "cat", f"{REPORT}.{vdev}"), f"the load on {vdev} of {guest} starts")
    try:
        yield
    finally:
        lab.run_in(guest, "sh", "-c", "killall -TERM load 2>/dev/null; true")
        report = wait_until(lambda: _report(lab, guest, vdev), f"the report of the load on {vdev} of {guest}", 60.0)
    said = lab.run_in(guest, "cat", f"{ERRORS}.{vdev}")
    assert (report.errors, report.corrupt) == (0, 0), (report, said)
    assert report.operations > 0, (report, said)
    assert report.final > 0 or op != "verify", (report, said)
    assert b"I/O error" not in lab.client.dmesg(guest)


def _report(lab: Lab, guest: str, vdev: str) -> Report | None:
    lines = lab.run_in(guest, "cat", f"{REPORT}.{vdev}").splitlines()
    if not lines or not lines[-1].startswith(b"{"):
        return None
    told = orjson.loads(lines[-1])
    return Report(told["operations"], told["errors"], told.get("corrupt", 0), told.get("final", 0))
