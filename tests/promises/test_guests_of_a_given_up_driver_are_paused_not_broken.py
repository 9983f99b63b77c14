"""A driver that is given up: its guests stand still, others go on, and `tv driver restart` brings all back."""

import os
import signal
from functools import partial

import pytest

from kernel.abi.guest_config import DiskConfig, DomainState, GuestConfig
from kernel.abi.status import Status
from tests.promises.events import EventLog, wait_until
from tests.promises.lab import DRIVER, ROOT, start_lab, tree_with
from tests.promises.load import verified_load
from tests.promises.native import console_of, create, last_end, native, wait_said
from triovisor.client import TvError

DEATHS = 3
POLICY = f"{{ free_deaths = {DEATHS}, max_deaths = {DEATHS}, window_s = 600 }}"


@pytest.fixture(params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path):
    with start_lab(tmp_path, restart=POLICY, standby=request.param) as started:
        yield started
        started.destroy_all()


def give_up(lab):
    """Kill the driver as often as it takes, and wait until its guests are as they are to be."""
    before = lab.log.mark()
    while not lab.log.all("driver.given_up", before):
        peer = lab.watch.active
        if lab.watch.pid_of(peer) and peer not in lab.watch.dead():
            os.kill(lab.watch.pid_of(peer), signal.SIGKILL)
            lab.watch.wait_death(peer)
    (told,) = lab.log.all("driver.given_up", before)
    for name in told["guests"]:
        wait_until(partial(stands, lab, name), f"{name} stands still")
    return told


def state(lab, name: str):
    return lab.client.info(name).state


def stands(lab, name: str) -> bool:
    return state(lab, name) is DomainState.PAUSED


def refused(act, *arguments) -> TvError:
    with pytest.raises(TvError) as caught:
        act(*arguments)
    return caught.value


def test_nothing_is_lost_and_no_error_is_seen_over_given_up_and_restart(lab, images):
    lab.create("g", images("g", 8))
    with verified_load(lab.client, "g") as load:
        for _ in range(2):
            told = give_up(lab)
            assert told["deaths"] >= DEATHS
            assert told["guests"] == ["g"]
            assert lab.driver().state is DomainState.GIVEN_UP
            assert lab.client.info("g").paused_for == [DRIVER]
            lab.client.restart_driver(DRIVER)
            assert lab.driver().state is DomainState.RUNNING
            wait_until(lambda: state(lab, "g") is DomainState.RUNNING, "it goes on")
            lab.watch.wait_serving()
            assert lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=1", "iflag=direct")
        lab.watch.kill()
        assert load.runs()


def test_nothing_is_lost_of_a_native_guests_either(lab, tmp_path, images):
    program = (ROOT / "examples" / "native" / "verify.py").read_text()
    create(lab, native(tmp_path, "n", program, images("native", 8), args=["600", "16"]))
    wait_said(lab, "n", "requests at once")
    for _ in range(2):
        assert give_up(lab)["guests"] == ["n"]
        assert lab.client.info("n").paused_for == [DRIVER]
        lab.client.restart_driver(DRIVER)
        wait_until(lambda: state(lab, "n") is DomainState.RUNNING, "it goes on")
        lab.watch.wait_serving()
    lab.client.shutdown("n", wait_s=30)
    assert last_end(lab, "n")["reason"] == "poweroff"
    assert ", 0 lost" in console_of(lab, "n")


def test_a_native_guest_that_crashes_under_a_given_up_driver_stands_still_again(lab, tmp_path, images):
    program = """
import trio
async def main(domain):
    await domain.disks["vda"].write(0, b"written".ljust(512))
    print("wrote", domain.peer.generation)
    await trio.sleep_forever()
"""
    create(lab, native(tmp_path, "n", program, images("native", 1), on_crash="restart"))
    wait_said(lab, "n", "wrote 1")
    give_up(lab)
    os.kill(lab.client.info("n").pid, signal.SIGKILL)
    wait_until(lambda: lab.client.info("n").generation == 2, "its next incarnation")
    wait_until(lambda: state(lab, "n") is DomainState.PAUSED, "it stands still")
    lab.client.restart_driver(DRIVER)
    wait_said(lab, "n", "wrote 2")
    assert state(lab, "n") is DomainState.RUNNING


def test_exactly_the_guests_that_stood_still_for_it_go_on(lab, images):
    """One of them the administrator had paused, and one he pauses while it stands still already."""
    for name in ("runs", "before", "meanwhile"):
        lab.create(name, images(name, 8))
    lab.create("diskless")
    lab.client.pause("before")
    told = give_up(lab)
    assert told["guests"] == ["runs", "before", "meanwhile"]
    lab.client.pause("meanwhile")
    assert lab.run_in("diskless", "echo", "alive") == b"alive\n"
    assert lab.client.info("runs").paused_for == [DRIVER]
    assert lab.client.info("before").paused_for == lab.client.info("meanwhile").paused_for == ["dom0", DRIVER]
    lab.client.restart_driver(DRIVER)
    wait_until(lambda: state(lab, "runs") is DomainState.RUNNING, "it goes on")
    for name in ("before", "meanwhile"):
        assert (state(lab, name), lab.client.info(name).paused_for) == (DomainState.PAUSED, ["dom0"])
        lab.client.unpause(name)
    for name in ("runs", "before", "meanwhile"):
        assert lab.run_in(name, "dd", "if=/dev/vda", "bs=4k", "count=1", "iflag=direct") == bytes(4096)


def test_all_that_can_be_asked_of_them_says_what_brings_them_back(lab, images):
    lab.create("g", images("g", 8))
    lab.run_in("g", "true")
    give_up(lab)
    mend = f"tv driver restart {DRIVER}"
    error = refused(lab.client.exec, "g", ["true"])
    assert (error.status, error.why) == (Status.EHOSTDOWN, f"guest g is paused, and {DRIVER} given up: {mend}")
    error = refused(lab.client.unpause, "g")
    assert (error.status, error.why) == (Status.EBUSY, f"guest g stays paused while {DRIVER} is given up: {mend}")
    disk = DiskConfig(target=str(images("late", 8)), vdev="vda", backend=DRIVER)
    error = refused(lab.client.create, GuestConfig(name="late", disk=[disk]))
    assert (error.status, error.why) == (
        Status.EHOSTDOWN,
        f"guest late: driver {DRIVER} is given up: {mend}, then tv create",
    )
    told = EventLog(lab.run / "log" / "dom0.1.jsonl").wait("driver.given_up", name=DRIVER)
    assert told["guests"] == ["g"]
    lab.client.destroy("g")
    lab.client.restart_driver(DRIVER)
    lab.create("late", images("late", 8))
    assert lab.run_in("late", "echo", "on") == b"on\n"


def test_a_running_driver_is_replaced_and_that_is_no_death(lab, images):
    lab.create("g", images("g", 8))
    with verified_load(lab.client, "g"):
        for _ in range(DEATHS + 1):
            before = lab.watch.wait_serving()
            lab.client.restart_driver(DRIVER)
            lab.watch.wait_serving(other_than=before)
            assert lab.watch.wait_death(before)["how"] == "ended by the administrator"
        assert lab.driver().state is DomainState.RUNNING
        assert not lab.log.all("driver.given_up")
    assert refused(lab.client.restart_driver, "nobody").status is Status.ENOENT
    assert refused(lab.client.restart_driver, "g").status is Status.ENOENT


def test_a_guest_that_crashes_under_a_given_up_driver_stands_still_again(lab, images):
    lab.create("g", images("g", 8), on_crash="restart")
    lab.run_in("g", "true")
    give_up(lab)
    os.kill(lab.client.info("g").pid, signal.SIGKILL)
    wait_until(lambda: lab.client.info("g").generation == 2, "its next incarnation")
    wait_until(lambda: state(lab, "g") is DomainState.PAUSED, "it stands still")
    lab.client.restart_driver(DRIVER)
    wait_until(lambda: state(lab, "g") is DomainState.RUNNING, "it goes on")
    assert lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=1", "iflag=direct") == bytes(4096)


def test_a_driver_that_is_given_up_as_the_hypervisor_boots_holds_nobody_up_and_can_be_brought_back(tmp_path, images):
    """Its first restart is in vain too."""
    tree = tree_with(tmp_path / "tree", "blkback", "stillborn")
    options = {"role": "drivers.blkback.stillborn", "options": f"{{ generations = {2 * DEATHS} }}"}
    with start_lab(tmp_path / "run", tree=tree, restart=POLICY, **options) as lab:
        assert lab.driver().state is DomainState.GIVEN_UP
        lab.create("diskless")
        assert lab.run_in("diskless", "echo", "alive") == b"alive\n"
        disk = DiskConfig(target=str(images("late", 8)), vdev="vda", backend=DRIVER)
        assert refused(lab.client.create, GuestConfig(name="late", disk=[disk])).status is Status.EHOSTDOWN
        error = refused(lab.client.restart_driver, DRIVER)
        again = f"driver {DRIVER} is given up again (exit status 3): see its log"
        assert (error.status, error.why) == (Status.EIO, again)
        lab.client.restart_driver(DRIVER)
        lab.create("late", images("late", 8))
        assert lab.run_in("late", "echo", "on") == b"on\n"
        lab.destroy_all()


def test_a_hypervisor_that_is_stopped_does_not_wait_for_guests_that_stand_still_for_a_driver(tmp_path, images):
    with start_lab(tmp_path, restart=POLICY, shutdown_grace_s=600.0) as lab:
        lab.create("g", images("g", 8))
        lab.run_in("g", "true")
        give_up(lab)
    assert [event["how"] for event in lab.log.all("guest.ended", name="g")] == ["destroyed"]
