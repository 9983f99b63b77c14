"""A driver in uninterruptible sleep is waited for: silent or killed, it has no successor before it is really gone."""

import os
import signal
import time

import pytest

from kernel.abi.guest_config import DomainState
from kernel.abi.status import Status
from tests.promises.events import wait_until
from tests.promises.lab import DRIVER, start_lab
from tests.promises.load import verified_load
from tests.promises.small_disks import freezable_disk
from triovisor.client import TvError

LONG_S = 2.0
"""Twice what a driver that is silent for another reason is given."""


@pytest.fixture(params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path):
    with start_lab(tmp_path / "run", standby=request.param) as started:
        yield started


@pytest.fixture
def disk(lab, tmp_path):
    """A guest on a disk that can be frozen, under load."""
    with freezable_disk(tmp_path, image_mib=8) as made:
        lab.create("g", made.image)
        with verified_load(lab.client, "g"):
            yield made
        lab.destroy_all()


def wait_held(lab) -> str:
    """The active incarnation, once it is seen to sleep."""
    slept = lab.log.wait("domain.uninterruptible", name=DRIVER)
    assert lab.driver().state is lab.client.info(DRIVER).state is DomainState.HELD
    peer: str = slept["peer"]
    return peer


def test_a_driver_whose_disk_does_not_answer_is_held_and_never_fenced_by_time(lab, disk):
    before = lab.watch.wait_serving()
    with disk.frozen():
        assert wait_held(lab) == before
        time.sleep(LONG_S)
        assert before not in lab.watch.dead()
    wait_until(lambda: lab.driver().state is DomainState.RUNNING, "it answers again")
    assert lab.watch.wait_serving() == before, "the same incarnation goes on"


def test_the_successor_of_a_killed_driver_that_cannot_die_waits_for_its_death(lab, disk):
    before = lab.watch.wait_serving()
    with disk.frozen():
        wait_held(lab)
        os.kill(lab.watch.pid_of(before), signal.SIGKILL)
        time.sleep(LONG_S)
        assert before not in lab.watch.dead()
        assert lab.watch.active == before
        assert lab.driver().state is DomainState.HELD
    lab.watch.wait_death(before)
    lab.watch.wait_serving(other_than=before)


def test_an_administrator_who_wants_it_restarted_is_told_that_it_cannot_be_ended(lab, disk):
    before = lab.watch.wait_serving()
    with disk.frozen():
        wait_held(lab)
        with pytest.raises(TvError, match="in uninterruptible sleep and cannot be ended") as refused:
            lab.client.restart_driver(DRIVER)
        assert refused.value.status is Status.ETIMEDOUT
        assert lab.log.wait("domain.unkillable", name=DRIVER)["peer"] == before
        assert lab.watch.active == before
        assert lab.driver().state is DomainState.HELD
    lab.watch.wait_serving(other_than=before)
