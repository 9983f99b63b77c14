"""The row of a native guest's start: from the order to create it until its program's `main` runs."""

import time
from collections.abc import Callable
from pathlib import Path

from bench.effort import Effort
from bench.figures import percentile
from bench.load import BenchError
from bench.ours import Ours, start_ours
from bench.rows import Row, time_row
from kernel.abi.guest_config import GuestConfig

__all__ = ["PROGRAM", "main_ns", "measure_native", "printed"]

PROGRAM = """\
import time
import trio

async def main(domain):
    print(time.monotonic_ns())
    await trio.sleep_forever()
"""

QUIET_S = 0.05
"""After a guest's start and after its end, so that neither is in the way of what is measured."""

PRINT_S = 5.0
LOOK_S = 0.005


def measure_native(run: Path, effort: Effort, say: Callable[[str], None]) -> list[Row]:
    """All rows of the group. The first start is not counted."""
    with start_ours(run / "native", standby=True) as hypervisor:
        program = run / "program.py"
        program.write_text(PROGRAM)
        time.sleep(QUIET_S)
        starts_ms = [
            _start_ms(hypervisor, GuestConfig(name=f"native{number}", type="native", program=str(program)))
            for number in range(effort.native_starts + 1)
        ]
    say(f"native: {effort.native_starts} starts")
    return [time_row("native.create_to_main.p50", percentile(starts_ms[1:], 0.5), "ms")]


def _start_ms(hypervisor: Ours, config: GuestConfig) -> float:
    began_ns = time.monotonic_ns()
    hypervisor.client.create(config)
    time.sleep(QUIET_S)
    started_ns = main_ns(hypervisor.run / "console" / f"{config.name}.log")
    hypervisor.client.destroy(config.name)
    time.sleep(QUIET_S)
    return (started_ns - began_ns) / 1e6


def main_ns(console: Path) -> int:
    """When the program of the guest with this console began, as it prints first of all. Raises BenchError."""
    return int(printed(console, PRINT_S).split()[0])


def printed(console: Path, wait_s: float) -> str:
    """What a guest has printed, once it ends with a whole line. Raises BenchError when it has said nothing in time."""
    deadline = time.monotonic() + wait_s
    while not console.exists() or not (text := console.read_text()).endswith("\n"):
        if time.monotonic() > deadline:
            raise BenchError(f"{console}: the program said nothing within {wait_s:g} s")
        time.sleep(LOOK_S)
    return text
