"""Dom0 and the zygotes: killed under a guest's load, they cost it nothing, and the next order finds new ones."""

import os
import signal

import orjson
import pytest

from kernel.abi.guest_config import DomainInfo
from tests.promises.events import wait_until
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load
from triovisor.client import TvError

LOAD = "load /dev/vda op=verify size=4k depth=8 span=4m seconds=2 > /tmp/report 2>&1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=True) as started:
        yield started


@pytest.fixture
def guest(lab, images):
    lab.create("g", images("any-part", 8))
    yield "g"
    lab.destroy_all()


def zygotes(lab: Lab) -> list[int]:
    """Those that live: the base and one for each role."""
    pids = [event["pid"] for event in lab.log.all("zygote.started")]
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def dom0(lab: Lab) -> DomainInfo | None:
    """As `tv info dom0` has it; none while there is no Dom0 to ask."""
    try:
        return lab.client.info("dom0")
    except TvError:
        return None


def kill_dom0(lab: Lab) -> None:
    """Wait until another serves."""
    before = wait_until(lambda: dom0(lab), "Dom0")
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: (now := dom0(lab)) is not None and now.generation > before.generation, "the next Dom0")


def test_dom0_may_be_killed_under_a_guests_load(lab, guest):
    """The load is the guest's own, since a command of `tv exec` is carried by Dom0."""
    lab.run_in(guest, "sh", "-c", f"({LOAD}) < /dev/null &")
    for _ in range(5):
        kill_dom0(lab)
        assert lab.run_in(guest, "echo", "heard") == b"heard\n"
        lab.watch.kill()
    report = orjson.loads(
        wait_until(lambda: lab.run_in(guest, "cat", "/tmp/report").partition(b"}")[0], "the load's report") + b"}"
    )
    assert (report["errors"], report["corrupt"]) == (0, 0)
    assert report["final"] > 0
    assert lab.client.info(guest).generation == 1


def test_a_command_that_dom0_carried_ends_with_a_clear_word_when_it_dies(lab, guest):
    with lab.client.command(guest, ["sleep", "4243"]) as command:
        wait_until(lambda: b"sleep 4243" in lab.run_in(guest, "ps"), "the command runs")
        kill_dom0(lab)
        ended = wait_until(command.take, "the command's end")[-1]
    assert (ended.status, ended.signal) == (None, None)
    assert "Dom0 ended the connection" in ended.why
    wait_until(lambda: b"sleep 4243" not in lab.run_in(guest, "ps"), "the command, which nobody watches, is killed")


def test_every_zygote_may_be_killed_under_a_guests_load(lab, guest):
    with verified_load(lab.client, guest):
        for _ in range(3):
            for pid in zygotes(lab):
                os.kill(pid, signal.SIGKILL)
            lab.watch.kill()
            lab.watch.kill()
    lab.create("after")
    assert lab.run_in("after", "echo", "alive") == b"alive\n"


def test_a_guests_reaper_that_is_killed_is_that_guests_crash_alone(lab, guest, images):
    lab.create("victim", images("victim", 8))
    with verified_load(lab.client, guest):
        os.kill(lab.client.info("victim").pid, signal.SIGKILL)
        ended = lab.log.wait("guest.ended", name="victim")
    assert (ended["reason"], ended["how"]) == ("crash", "killed by SIGKILL")
