"""`tv pause`: the guest's operating system stands still and goes on later, under load, and whatever dies meanwhile."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from kernel.abi.guest_config import DomainState
from kernel.abi.status import Status
from tests.promises.lab import start_lab
from tests.promises.load import verified_load
from tests.promises.processes import descendants_of
from triovisor.client import TvError

STILL_S = 0.5
"""For which it is watched. A guest under load would use most of that."""

SPIN = ["sh", "-c", "while :; do :; done"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=True) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def system_ticks(lab, guest: str) -> dict[int, int]:
    """The CPU time of each process of a guest's operating system, as the host tells it: all but reaper and actor.

    Of one that runs a process may have ended since it was seen.
    """
    reaper = lab.client.info(guest).pid
    family = descendants_of(reaper)
    actor = min((p for p in family if p.parent == reaper), key=lambda p: p.started).pid
    ticks = {}
    for process in family:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks[process.pid] = int(fields[11]) + int(fields[12])
    ticks.pop(actor, None)
    return ticks


def assert_stands_still(lab, guest: str) -> None:
    before = system_ticks(lab, guest)
    assert before
    time.sleep(STILL_S)
    used = sum(system_ticks(lab, guest).values()) - sum(before.values())
    assert used <= 1, f"{used} ticks in {STILL_S} s: at most the one that was nearly over"
    told = lab.client.info(guest)
    assert told.state is DomainState.PAUSED


def refused(act, *arguments) -> TvError:
    with pytest.raises(TvError) as caught:
        act(*arguments)
    assert "\n" not in caught.value.why
    return caught.value


def test_a_guest_under_verified_load_is_paused_again_and_again_and_sees_no_error(lab, images):
    lab.create("g", images("loaded", 8))
    with verified_load(lab.client, "g") as load:
        for _ in range(5):
            lab.client.pause("g")
            assert_stands_still(lab, "g")
            assert lab.client.info("g").paused_for == ["dom0"]
            lab.client.unpause("g")
            assert lab.client.info("g").state is DomainState.RUNNING
            assert lab.run_in("g", "echo", "on") == b"on\n"
        assert load.runs()


def test_a_guest_that_computes_stands_still_and_its_command_goes_on_where_it_was(lab):
    lab.create("g")
    with lab.client.command("g", SPIN) as spinning:
        lab.client.pause("g")
        assert_stands_still(lab, "g")
        lab.client.unpause("g")
        before = system_ticks(lab, "g")
        time.sleep(STILL_S)
        after = system_ticks(lab, "g")
        assert any(after.get(pid, 0) > ticks for pid, ticks in before.items())
        assert spinning.take() == []


def test_pausing_twice_and_unpausing_what_runs_change_nothing(lab):
    lab.create("g")
    lab.client.unpause("g")
    lab.client.pause("g")
    lab.client.pause("g")
    lab.client.unpause("g")
    lab.client.unpause("g")
    assert lab.run_in("g", "echo", "on") == b"on\n"


def test_its_driver_may_die_while_a_guest_is_paused_and_as_it_is_unpaused(lab, images):
    lab.create("g", images("died", 8))
    with verified_load(lab.client, "g"):
        for _ in range(5):
            lab.client.pause("g")
            lab.watch.kill()
            lab.watch.kill()
            lab.client.unpause("g")
            lab.watch.kill()


def test_a_guest_may_be_paused_from_its_first_moment_on(lab, images):
    """Its kernel has not come to its management console yet; it is waited for."""
    for number in range(3):
        lab.create("g", images(f"early-{number}", 8))
        lab.client.pause("g")
        assert_stands_still(lab, "g")
        lab.client.unpause("g")
        assert lab.run_in("g", "echo", "on") == b"on\n"
        lab.client.destroy("g")


def test_a_paused_guest_takes_no_command_can_be_destroyed_and_harms_no_other(lab, images):
    for name in ("paused", "other"):
        lab.create(name, images(name, 8))
    with verified_load(lab.client, "other"):
        lab.client.pause("paused")
        for act in (lambda: lab.client.exec("paused", ["true"]), lambda: lab.client.shutdown("paused", wait_s=5)):
            error = refused(act)
            assert (error.status, error.why) == (Status.EHOSTDOWN, "guest paused is paused: tv unpause paused")
        lab.client.destroy("paused")
        assert "paused" not in [domain.name for domain in lab.client.list()]


def test_what_cannot_be_paused_is_refused_in_one_line(lab):
    lab.create("dead", on_poweroff="preserve")
    lab.run_in("dead", "true")
    lab.client.shutdown("dead", wait_s=10)
    for act in (lab.client.pause, lab.client.unpause):
        assert refused(act, "nobody").status is Status.ENOENT
        assert refused(act, "blkback").status is Status.EPERM
        assert refused(act, "dom0").status is Status.EPERM
        error = refused(act, "dead")
        assert (error.status, error.why) == (Status.EHOSTDOWN, "guest dead is shutdown: tv destroy dead removes it")


def test_the_guests_clocks_have_gone_on_while_it_stood_still(lab):
    """As for a machine that was suspended with its clock running; README says so."""
    lab.create("g")
    script = "cut -d' ' -f1 /proc/uptime; date +%s"
    before = [float(word) for word in lab.run_in("g", "sh", "-c", script).split()]
    asked = time.monotonic()
    lab.client.pause("g")
    time.sleep(2)
    lab.client.unpause("g")
    after = [float(word) for word in lab.run_in("g", "sh", "-c", script).split()]
    took = time.monotonic() - asked
    assert 2 <= after[0] - before[0] <= took + 1
    assert abs(after[1] - time.time()) < 2


def test_dom0_may_die_while_a_guest_is_paused(lab, images):
    lab.create("g", images("dom0", 8))
    lab.client.pause("g")
    mark = lab.log.mark()
    os.kill(lab.client.info("dom0").pid, signal.SIGKILL)
    lab.log.wait("domain.started", mark, name="dom0")
    assert_stands_still(lab, "g")
    lab.client.unpause("g")
    assert lab.run_in("g", "echo", "on") == b"on\n"


def test_a_hypervisor_that_is_stopped_lets_paused_guests_go_on_to_power_off_in_order(tmp_path):
    with start_lab(tmp_path, shutdown_grace_s=30.0) as lab:
        lab.create("g")
        lab.run_in("g", "true")
        lab.client.pause("g")
    assert [event["reason"] for event in lab.log.all("guest.ended", name="g")] == ["poweroff"]
