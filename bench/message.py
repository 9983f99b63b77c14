"""Rows of speaking: a hypercall, a packet between two domains and back, and messages one way as fast as they go.

The peer of each round trip: two plain processes with blocking calls and nothing to decide, over a socket of that kind.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.effort import Effort
from bench.figures import percentile
from bench.load import BenchError
from bench.native import printed
from bench.ours import Ours, start_ours
from bench.rows import Row, latency_row, time_row
from kernel.abi.guest_config import GuestConfig

__all__ = ["measure_messages"]

PROGRAM = Path(__file__).parent / "programs" / "speaker.py"
REPORT_S = 60.0


class Spoken(Struct, frozen=True):
    """What the program prints."""

    hypercall_us: list[float]
    message_us: list[float]
    rate: float


def measure_messages(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group: with the two ends of each channel on CPUs of their own, and all on one."""
    allowed = sorted(os.sched_getaffinity(0))
    with start_ours(run / "message", standby=False) as hypervisor:
        apart = _speak(hypervisor, effort, "apart", *allowed[:2]) if len(allowed) > 1 else None
        together = _speak(hypervisor, effort, "together", allowed[0], allowed[0])
    say(f"message: {effort.words} rounds each")
    rows = [] if apart is None else [*_rows("two-cpus", apart, _plain_us(effort, *allowed[:2]))]
    rows += _rows("one-cpu", together, _plain_us(effort, allowed[0], allowed[0]))
    best = together if apart is None else apart
    return sorted([*rows, time_row("message.rate", best.rate / 1e6, "M/s")], key=lambda row: row.name)


def _rows(where: str, spoken: Spoken, plain_us: float) -> tuple[Row, Row]:
    return (
        latency_row(f"hypercall.rtt.{where}.p50", percentile(spoken.hypercall_us, 0.5), plain_us, "µs"),
        latency_row(f"message.rtt.{where}.p50", percentile(spoken.message_us, 0.5), plain_us, "µs"),
    )


def _plain_us(effort: Effort, cpu: int, others_cpu: int) -> float:
    """The median round trip of the peer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.sched_setaffinity(0, {others_cpu})
            while data := theirs.recv(64):
                theirs.send(data)
            os._exit(0)
        theirs.close()
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        times = []
        for _ in range(effort.words):
            began = time.perf_counter()
            ours.send(b"ping")
            ours.recv(64)
            times.append(1e6 * (time.perf_counter() - began))
        os.sched_setaffinity(0, allowed)
    os.waitpid(pid, 0)
    return percentile(times, 0.5)


def _speak(hypervisor: Ours, effort: Effort, where: str, cpu: int, others_cpu: int) -> Spoken:
    """The one that measures runs on `cpu`, whom it speaks to on `others_cpu`."""
    echo, measure = f"echo-{where}", f"measure-{where}"
    rounds = str(effort.words)
    _create(hypervisor, echo, others_cpu, ["echo", measure, rounds])
    _create(hypervisor, measure, cpu, ["measure", echo, rounds])
    with hypervisor.on_cpu(others_cpu):
        report = _report(hypervisor.run / "console" / f"{measure}.log")
    for name in (echo, measure):
        hypervisor.client.destroy(name)
    return report


def _create(hypervisor: Ours, name: str, cpu: int, args: list[str]) -> None:
    hypervisor.client.create(
        GuestConfig(name=name, type="native", program=str(PROGRAM), args=args, peers=[args[1]], cpus=str(cpu))
    )


def _report(console: Path) -> Spoken:
    """What it printed. Raises BenchError when it is none."""
    line = printed(console, REPORT_S)
    try:
        return msgspec.json.decode(line, type=Spoken)
    except msgspec.DecodeError as error:
        raise BenchError(f"{console}: no report: {line[-200:]!r}") from error
