"""What the demo does to the disk driver, and when it struck."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from triovisor.client import Client

__all__ = ["FAULTS", "Fault", "Strike", "strike"]

DRIVER = "blkback"

RECOVERY_DEADLINE_S = 10.0
"""For a new incarnation to be active after a fault. A hang is noticed after half a second."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault by name, and how it is brought about: a signal from outside, or an order to misbehave."""

    name: str
    says: str
    act: Callable[[Client], None]


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that struck: from when until all was as before, in seconds of `time.monotonic`, who died and who
    followed."""

    fault: Fault
    at_s: float
    over_s: float
    died: int
    followed: int
    how: str


def _kill(client: Client) -> None:
    (driver,) = client.drivers()
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)


KILL = Fault("kill -9", "SIGKILL to the disk driver", _kill)
HANG = Fault("hang", "the disk driver stops turning its loop", lambda client: client.inject(DRIVER, "hang"))
BREAK = Fault("broken ring", "the disk driver corrupts its ring", lambda client: client.inject(DRIVER, "corrupt-ring"))

FAULTS = (KILL, KILL, HANG, KILL, BREAK, KILL, KILL)


def strike(client: Client, fault: Fault) -> Strike:
    """Bring a fault about and wait until another incarnation is active and a standby is ready. Raises TimeoutError."""
    (before,) = client.drivers()
    at_s = time.monotonic()
    fault.act(client)
    deadline = at_s + RECOVERY_DEADLINE_S
    while time.monotonic() < deadline:
        (driver,) = client.drivers()
        if driver.generation != before.generation and driver.pid is not None and driver.standby_pid is not None:
            return Strike(fault, at_s, time.monotonic(), before.generation, driver.generation, driver.last_death)
        time.sleep(0.01)
    raise TimeoutError(f"{fault.name} did not strike, or nothing followed it: tv driver list shows the driver")
