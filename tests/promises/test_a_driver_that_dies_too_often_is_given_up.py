"""Restart policy: the first deaths are followed at once, the next after a growing pause, then none, said loudly."""

import os
import signal
import subprocess
import sys

import orjson
import pytest

from kernel.abi.guest_config import DomainState
from tests.promises.events import wait_until
from tests.promises.lab import DRIVER, ROOT, start_lab

POLICY = "{ free_deaths = 2, backoff_s = 0.05, backoff_cap_s = 0.2, max_deaths = 6, window_s = 600 }"
DEATHS = 6
PAUSES = [0.05, 0.1, 0.2]
"""After the third, fourth and fifth death; the sixth is the last."""


@pytest.fixture
def given_up(tmp_path):
    """A hypervisor whose driver was killed once too often, from the moment on that it served anybody."""
    with start_lab(tmp_path, restart=POLICY) as lab:
        for _ in range(DEATHS):
            peer = wait_until(lambda: living(lab), "an incarnation")
            os.kill(lab.watch.pid_of(peer), signal.SIGKILL)
            lab.watch.wait_death(peer)
        yield lab


def living(lab) -> str:
    """The active incarnation, if it is alive and its process there."""
    lab.watch.look()
    alive = lab.watch.active not in lab.watch.dead() and lab.watch.pid_of(lab.watch.active)
    return lab.watch.active if alive else ""


def test_deaths_are_followed_at_once_then_after_a_growing_pause_then_never(given_up):
    told = given_up.log.wait("driver.given_up", name=DRIVER)
    assert (told["deaths"], told["window_s"], told["level"]) == (DEATHS, 600.0, "critical")
    pauses = [event["delay_s"] for event in given_up.log.all("driver.backing_off", name=DRIVER)]
    assert pauses == PAUSES
    ends = list(given_up.watch.dead().values())
    births = given_up.log.all("domain.cloned", name=DRIVER)
    assert len(ends) == len(births) == DEATHS
    waited_s = [(birth["ns"] - end["ns"]) / 1e9 for end, birth in zip(ends, births[1:], strict=False)]
    assert all(waited >= pause for waited, pause in zip(waited_s[2:], PAUSES, strict=True)), waited_s


def test_a_given_up_driver_is_shown_as_such_and_everything_else_goes_on(given_up):
    given_up.log.wait("driver.given_up", name=DRIVER)
    driver = given_up.driver()
    assert (driver.state, driver.pid, driver.last_death) == (DomainState.GIVEN_UP, None, "killed by SIGKILL")
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(given_up.run), "driver", "list"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "given-up" in shown.stdout
    told = subprocess.run([*command, "--json"], capture_output=True, cwd=ROOT, check=True)
    assert orjson.loads(told.stdout)[0]["state"] == "given-up"
    given_up.create("diskless")
    assert given_up.run_in("diskless", "echo", "alive") == b"alive\n"
