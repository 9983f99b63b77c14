"""What the log keeper does with bytes: whose they are, how much of them is kept, what is said when some are not."""

import os
import time
from collections import deque
from pathlib import Path

import orjson

from kernel.abi.ids import Peer
from kernel.abi.keeping import TAIL_BYTES
from kernel.core.allowance import Allowance

__all__ = ["Keeping", "LogStamper", "TailBuffer"]

MAX_LINE_BYTES = 65536
"""Without a newline for so long, what came is a line of its own."""

FILE_BYTES = 256 * 1024 * 1024
"""Of one file. What comes after is counted, not kept."""

BURST_BYTES, BYTES_PER_S = 8 * 1024 * 1024, 1024 * 1024
"""A domain that logs faster than this loses the excess, counted: a flood must not fill the disk within minutes."""


class LogStamper:
    """Cuts a log pipe's bytes into lines and stamps each with the domain it came from.

    The stamp stands first in the object and a domain's own fields behind it; names that the keeper stamps are dropped
    from what the domain wrote, so that nobody can speak for another.
    """

    def __init__(self, name: str, peer: Peer) -> None:
        self._stamp = {"domain": name, "domid": peer.domid, "generation": peer.generation}
        self._rest = b""

    def lines(self, data: bytes) -> bytes:
        """The complete lines in what has come so far, stamped."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            complete.append(self._rest)
            self._rest = b""
        return b"".join(self._stamped(line) for line in complete if line)

    def skip(self, data: bytes) -> None:
        """Pass over bytes that are not kept, up to the beginning of their last line."""
        self._rest = data.rpartition(b"\n")[2]

    def last(self) -> bytes:
        """At the pipe's end: a line that was cut off by a kill is kept as it is."""
        rest, self._rest = self._rest, b""
        return self._stamped(rest) if rest else b""

    def event(self, event: str, **fields: object) -> bytes:
        """A line of the keeper's own about this pipe."""
        return (
            orjson.dumps({**self._stamp, "ns": time.monotonic_ns(), "level": "warning", "event": event, **fields})
            + b"\n"
        )

    def _stamped(self, line: bytes) -> bytes:
        try:
            fields = orjson.loads(line)
            if isinstance(fields, dict) and isinstance(fields.get("event"), str):
                own = {key: value for key, value in fields.items() if key not in self._stamp}
                return orjson.dumps({**self._stamp, **own}) + b"\n"
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # the latter: it reads deeper nesting than it writes
            pass
        return self.event("log.unreadable", text=line[:512].decode(errors="replace"))


class TailBuffer:
    """The last `TAIL_BYTES` of a stream, which begins with what a file has already."""

    def __init__(self, file: Path | None = None) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        if file:
            with file.open("rb") as before:
                before.seek(max(0, before.seek(0, os.SEEK_END) - TAIL_BYTES))
                self.take(before.read())

    def take(self, data: bytes) -> None:
        """Add bytes; forget the oldest."""
        self._pieces.append(data)
        self._size += len(data)
        while self._size - len(self._pieces[0]) >= TAIL_BYTES:
            self._size -= len(self._pieces.popleft())

    def bytes(self) -> bytes:
        """What is kept, oldest first."""
        return b"".join(self._pieces)[-TAIL_BYTES:]


class Keeping:
    """One pipe's file, with its limits."""

    def __init__(self, descriptor: int, stamper: LogStamper | None, tail: TailBuffer | None) -> None:
        self._descriptor = descriptor
        self._stamper = stamper
        self._tail = tail
        self._size = os.fstat(descriptor).st_size
        self._allowance = Allowance(BURST_BYTES, BYTES_PER_S)
        self._lost = 0

    def take(self, data: bytes) -> None:
        """Keep what a pipe gave. While the allowance is overdrawn, it is not even looked at: that costs time."""
        if self._stamper is None:
            self._write(data)
        elif self._allowance.spend(0, time.monotonic()) > 0:
            self._stamper.skip(data)
            self._lost += len(data)
        else:
            self._write(self._stamper.lines(data))

    def close(self) -> None:
        """The pipe is at its end."""
        if self._stamper:
            self._write(self._stamper.last())
        self._tell_gap()
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._tail:
            self._tail.take(data)
        now_s = time.monotonic()
        if self._allowance.spend(0, now_s) > 0 or self._size + len(data) > FILE_BYTES:
            self._lost += len(data)
            return
        self._allowance.spend(len(data), now_s)
        self._tell_gap()
        if not self._append(data):
            self._lost += len(data)

    def _tell_gap(self) -> None:
        if not self._lost:
            return
        text = f"\n[log.gap: {self._lost} bytes not kept]\n".encode()
        if self._append(self._stamper.event("log.gap", bytes=self._lost) if self._stamper else text):
            self._lost = 0

    def _append(self, data: bytes) -> bool:
        """Append it whole, or nothing: a disk may be full, now or in the middle of a line."""
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            return False
        if written < len(data):
            os.ftruncate(self._descriptor, self._size)
            return False
        self._size += written
        return True
