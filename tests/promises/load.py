"""Verified load in a guest: every block carries its generation, every read is checked, all is read back at the end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from kernel.abi.guest_io import ExecEnded, Stream
from tests.promises.events import wait_until
from triovisor.client import Client
from triovisor.command import BytesSource, Command, pump

__all__ = ["Report", "verified_load"]

FOREVER_S = 600
REPORT_S = 40.0


@dataclass(frozen=True, slots=True)
class Report:
    """What the guest saw: operations, those with an error, blocks with wrong data, blocks read back at the end."""

    operations: int
    errors: int
    corrupt: int
    final: int


class Load(threading.Thread):
    """The load, and what it says."""

    def __init__(self, client: Client, guest: str, argv: list[str]) -> None:
        super().__init__(name=f"load in {guest}")
        self.guest = guest
        self.report: Report | None = None
        """There once the load has ended."""
        self._client = client
        self._argv = argv
        self._command: Command | None = None
        self._output = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self._ended: ExecEnded | None = None

    def run(self) -> None:
        with self._client.command(self.guest, self._argv) as command:
            self._command = command
            self._ended = pump(command, BytesSource(b""), lambda stream, data: self._output[stream].extend(data))

    def wait_started(self) -> None:
        wait_until(lambda: self._output[Stream.STDOUT] or self._ended, f"the load in {self.guest} starts")
        assert self._ended is None, self.said()

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._ended is None and self.is_alive()

    def said(self) -> str:
        return f"load in {self.guest}: {self._ended} {self._output}"

    def stop(self) -> Report:
        """End it; it reads back all that it wrote. Its report."""
        assert self.runs(), self.said()
        assert self._command is not None
        self._command.signal(signal.SIGTERM)
        self.join(REPORT_S)
        assert self._ended is not None, f"the load in {self.guest} did not end"
        line = bytes(self._output[Stream.STDOUT]).splitlines()[-1]
        assert line.startswith(b"{"), self.said()
        told: dict[str, Any] = orjson.loads(line)
        self.report = Report(told["operations"], told["errors"], told["corrupt"], told["final"])
        return self.report


@contextmanager
def verified_load(
    client: Client, guest: str, vdev: str = "vda", *, depth: int = 16, span: str = "4m"
) -> Iterator[Load]:
    """Load a disk in a guest for as long as the block runs, then see that the guest saw no error and no wrong data."""
    words = ["op=verify", "size=4k", f"depth={depth}", f"span={span}", f"seconds={FOREVER_S}", "gaps_us=1000000"]
    load = Load(client, guest, ["load", f"/dev/{vdev}", *words])
    load.start()
    try:
        load.wait_started()
        yield load
    finally:
        report = load.stop()
    assert (report.errors, report.corrupt) == (0, 0), load.said()
    assert report.operations > 0 < report.final, load.said()
    assert b"I/O error" not in client.dmesg(guest)
