"""A log: one JSON line an event, each written whole to the log keeper's pipe at once, so that a kill loses none."""

import os
import time
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

__all__ = ["Log", "open_log"]

Log = Any
"""A structlog logger: `log.warning("noun.past_verb", field=value)`."""

MAX_LINE_BYTES = 4096
"""PIPE_BUF: up to this a write to a pipe is atomic (pipe(7)), so lines of two threads never mix."""


def open_log(descriptor: int) -> Log:
    """A logger into the pipe `descriptor`. A full pipe drops the event and counts it: a log never blocks a domain."""
    os.set_blocking(descriptor, False)
    pipe = _Pipe(descriptor)
    return structlog.wrap_logger(
        pipe,
        processors=[_stamp, structlog.processors.add_log_level, structlog.processors.dict_tracebacks, _render],
        wrapper_class=structlog.BoundLogger,
    )


class _Pipe:
    """What structlog calls a logger: the last step, which writes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lost = 0

    def msg(self, line: bytes) -> None:
        if self._lost:
            line = (
                orjson.dumps(
                    {"ns": time.monotonic_ns(), "level": "warning", "event": "log.dropped", "count": self._lost}
                )
                + b"\n"
                + line
            )
        try:
            os.write(self._descriptor, line[:MAX_LINE_BYTES])
        except BlockingIOError:
            self._lost += 1
        except BrokenPipeError:
            return
        else:
            self._lost = 0

    debug = info = warning = error = critical = msg


def _stamp(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {"ns": time.monotonic_ns(), **event}


def _render(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> bytes:
    line = orjson.dumps(event, default=str)
    if len(line) >= MAX_LINE_BYTES:
        line = orjson.dumps(
            {
                "ns": event["ns"],
                "level": event.get("level"),
                "event": event.get("event"),
                "cut": line[: MAX_LINE_BYTES // 2].decode(errors="replace"),
            }
        )
    return line + b"\n"
