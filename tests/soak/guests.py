"""The guests of a soak: those whose load may see no error at all, and those whose operating system is killed."""

import os
import signal

import orjson

from tests.promises.events import wait_until
from tests.promises.lab import Lab
from tests.promises.processes import children_of
from triovisor.client import TvError

__all__ = ["LoadedGuest", "MortalGuest", "tell"]

RESTART_S = 30.0
REPORT_S = 60.0
SLOTS = 64
"""Records of a mortal guest, one to a sector, overwritten in turn."""


def tell(lab: Lab, guest: str, command: str) -> bytes:
    """What a shell command in a guest prints. Dom0 may be away for a moment: then it is asked again, so the command
    must be one that may be done twice."""

    def ask() -> bytes | None:
        try:
            result = lab.client.exec(guest, ["sh", "-c", command])
        except TvError:
            return None
        if result.status is None:
            return None
        assert result.status == 0, f"{command} in {guest}: {result}"
        return b"." + result.stdout

    output: bytes = wait_until(ask, f"{guest} does {command}", RESTART_S)
    return output[1:]


class LoadedGuest:
    """A guest under verified load of its own, which no command of Dom0's carries. It must live to the end."""

    def __init__(self, lab: Lab, name: str, seconds: float) -> None:
        self.name = name
        self._lab = lab
        load = f"load /dev/vda op=verify size=4k depth=8 span=4m seconds={seconds:.0f}"
        tell(lab, name, f"[ -e /tmp/pid ] || {{ ({load} > /tmp/report 2>&1) < /dev/null & echo $! > /tmp/pid; }}")

    def finish(self) -> int:
        """End the load, which reads back what it wrote. Operations done; fails for any error or wrong block."""
        tell(self._lab, self.name, "killall -TERM load 2> /dev/null; true")
        report = orjson.loads(wait_until(self._report, f"report of {self.name}", REPORT_S))
        assert (report["errors"], report["corrupt"]) == (0, 0), f"{self.name}: {report}"
        assert report["operations"] > 0 < report["final"], f"{self.name}: {report}"
        assert self._lab.client.info(self.name).generation == 1, f"{self.name} did not live to the end"
        operations: int = report["operations"]
        return operations

    def _report(self) -> bytes:
        """Its last line, once it is whole."""
        line = tell(self._lab, self.name, "cat /tmp/report").strip().rpartition(b"\n")[2]
        return line if line.endswith(b"}") else b""


class MortalGuest:
    """A guest that writes numbered records, each flushed, and is killed in between: what it said is there then."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.deaths = 0
        self._lab = lab
        self._written = 0

    def write(self) -> None:
        """One more record, on stable storage before this returns."""
        record, slot = self._written + 1, (self._written + 1) % SLOTS
        write = f"printf '%0512d' {record} | dd of=/dev/vda bs=512 seek={slot} count=1 conv=fsync 2> /dev/null"
        tell(self._lab, self.name, write)
        self._written = record

    def kill(self) -> None:
        """SIGKILL to its operating system, and wait for its restart."""
        before = self._lab.client.info(self.name)
        assert before.pid is not None
        (system,) = [child for child in children_of(before.pid) if child.program == "linux.uml"]
        os.kill(system.pid, signal.SIGKILL)
        self.deaths += 1
        wait_until(lambda: self._lives(before.generation), f"the restart of {self.name}", RESTART_S)

    def _lives(self, generation: int) -> bool:
        try:
            return self._lab.client.info(self.name).generation > generation
        except TvError:
            return False

    def check(self) -> int:
        """Read back every record that it said it had written. How many; fails for one that is not there."""
        last, count = self._written, min(self._written, SLOTS)
        for record in range(last - count + 1, last + 1):
            read = f"dd if=/dev/vda bs=512 skip={record % SLOTS} count=1 2> /dev/null"
            assert int(tell(self._lab, self.name, read)) == record, f"record {record} of {self.name} is lost"
        return count
