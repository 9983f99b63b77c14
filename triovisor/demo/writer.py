"""The demo's writer in the guest: records that are acknowledged only when they are on the disk."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import orjson

from kernel.abi.guest_io import ExecEnded, Stream
from triovisor.client import Client
from triovisor.command import BytesSource, Command, pump

__all__ = ["FILE", "Outage", "Written", "Writer", "verify"]

FILE = "/mnt/records"

SLOW_MS = 2
"""A record that takes longer is listed."""

SIGTERM = 15


@dataclass(frozen=True, slots=True)
class Outage:
    """A slow record: when it began, in the host's `time.monotonic`, and how long it took."""

    at_s: float
    ms: float


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer says at its end."""

    acknowledged: int
    last: int
    io_errors: int
    median_ms: float
    outages: list[Outage]


class Writer(threading.Thread):
    """Writes until it is stopped. `acknowledged` grows meanwhile."""

    def __init__(self, client: Client, guest: str) -> None:
        super().__init__(name="writer")
        self._client = client
        self._guest = guest
        self._command: Command | None = None
        self._began_s = 0.0
        self._output = bytearray()
        self._errors = bytearray()
        self._ended: ExecEnded | None = None
        self.acknowledged = 0
        self.started = threading.Event()

    def run(self) -> None:
        argv = ["records", "write", FILE, f"slow_ms={SLOW_MS}", "every_ms=20"]
        with self._client.command(self._guest, argv) as command:
            self._command = command
            self._ended = pump(command, BytesSource(b""), self._took)

    def _took(self, stream: Stream, data: bytes) -> None:
        if stream is Stream.STDERR:
            self._errors += data
            return
        self._began_s = self._began_s or time.monotonic()
        self._output += data
        lines = bytes(self._output).splitlines()
        acknowledged = [line for line in lines if line.startswith(b"acked ")]
        if acknowledged:
            self.acknowledged = int(acknowledged[-1].split()[1]) + 1
            self.started.set()
        self._output = bytearray(b"".join(bytes(self._output).splitlines(keepends=True)[-1:]))

    def stop(self) -> Written:
        """Stop writing, and take the account. Raises RuntimeError when there is none."""
        assert self._command is not None
        self._command.signal(SIGTERM)
        self.join(30)
        try:
            account: dict[str, Any] = orjson.loads(self._output)
        except orjson.JSONDecodeError as error:
            raise RuntimeError(f"the writer gave no account: {self._ended} {self._errors.decode()}") from error
        outages = [Outage(self._began_s + outage["at_s"], outage["ms"]) for outage in account["outages"]]
        return Written(account["acknowledged"], account["last"], account["io_errors"], account["median_ms"], outages)


def verify(client: Client, guest: str, last: int) -> dict[str, int]:
    """Read everything back: `verified`, `lost`, `corrupt`."""
    result = client.exec(guest, ["records", "verify", FILE, f"acked={last}"])
    found: dict[str, int] = orjson.loads(result.stdout)
    return found
