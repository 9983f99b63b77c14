"""However its disk driver fails, a guest sees no error, and the log says which way it was."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.promises.events import Event
from tests.promises.lab import DRIVER, Lab, start_lab
from tests.promises.load import verified_load

TIMES = 5


@dataclass(frozen=True, slots=True)
class Failure:
    """A way to fail that a driver can be ordered to take: how its end is told, and what else the log must have."""

    what: str
    how: str
    evidence: Callable[[Lab, Event], bool]


def nothing_else(_lab: Lab, _death: Event) -> bool:
    return True


def is_sampled(lab: Lab, death: Event) -> bool:
    """`py-spy`'s sample names the function in which it hangs, and its own word says where its Trio tasks wait."""
    (sampled,) = lab.log.all("domain.sampled", peer=death["peer"])
    assert any("_hang" in line for line in sampled["threads"]), sampled
    dumped = lab.log_of(death["peer"]).wait("domain.tasks_dumped")
    assert "main" in str(dumped["tasks"])
    return bool(lab.log.all("domain.hung", peer=death["peer"]))


def is_accused(lab: Lab, death: Event) -> bool:
    """The frontend's word is in the log, and the driver is blamed for it."""
    accused = lab.log.all("ring.faulted", accused=death["peer"])
    return bool(accused) and bool(lab.log.all("domain.faulted", peer=death["peer"]))


IDLE_S = 5.0
"""After so long without anything to do, these drivers are asked for a sign of life once in some three seconds."""

FOUND_S = 1.5
"""From a request to its answer by the successor of a driver that hangs: silent for 0.05 s, asked soon after, not heard
for 0.3 s."""

FAILURES = (
    Failure("exit", "exit status 0", nothing_else),
    Failure("oom", "exit status 70", nothing_else),
    Failure("hang", "hung: silent for 0.3 s", is_sampled),
    Failure("corrupt-ring", "fault: ", is_accused),
    Failure("stray-reply", "fault: ", is_accused),
)


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    heartbeat = "{ interval_s = 0.05, deadline_s = 0.3 }"
    run = tmp_path_factory.mktemp("run")
    with start_lab(run, standby=request.param, heartbeat=heartbeat, address_space=768) as started:
        yield started


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.what)
def test_a_driver_that_fails_five_times_costs_its_guest_nothing_and_the_log_tells_how(lab, images, failure):
    lab.create("g", images("failing", 8))
    try:
        with verified_load(lab.client, "g"):
            deaths = [lab.watch.strike(lambda _pid: lab.client.inject(DRIVER, failure.what)) for _ in range(TIMES)]
        for death in deaths:
            assert death["how"].startswith(failure.how)
            assert failure.evidence(lab, death)
            assert lab.log.all("fault.injected", peer=death["peer"], what=failure.what)
    finally:
        lab.destroy_all()


def test_a_driver_that_nobody_has_asked_for_a_while_and_that_hangs_is_found_by_the_next_request(lab, images):
    lab.create("g", images("failing", 8))
    try:
        time.sleep(IDLE_S)
        peer = lab.watch.wait_serving()
        since = lab.log.mark()
        os.kill(lab.watch.pid_of(peer), signal.SIGSTOP)
        time.sleep(1)
        assert not lab.log.all("domain.hung", since)
        began_s = time.monotonic()
        lab.run_in("g", "dd", "if=/dev/zero", "of=/dev/vda", "bs=4k", "count=1", "oflag=direct")
        assert time.monotonic() - began_s < FOUND_S
        assert lab.log.wait("domain.hung", since)["peer"] == peer
    finally:
        lab.destroy_all()


def test_a_killed_driver_is_told_from_one_that_ended_by_itself(lab, images):
    lab.create("g", images("failing", 8))
    try:
        with verified_load(lab.client, "g"):
            deaths = [lab.watch.kill() for _ in range(TIMES)]
        assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
    finally:
        lab.destroy_all()


def test_a_guest_that_accuses_its_driver_more_than_five_times_a_minute_is_ended_itself(lab, images):
    image = images("accuser", 8)
    lab.create("accuser", image)
    try:
        for _ in range(TIMES):
            lab.watch.strike(lambda _pid: lab.client.inject(DRIVER, "stray-reply"))
        since = lab.log.mark()
        lab.client.inject(DRIVER, "stray-reply")
        ended = lab.log.wait("guest.ended", since, name="accuser")
        assert (ended["reason"], ended["how"]) == ("crash", "fault: accuses its backends too often")
        lab.create("next", image)
        with verified_load(lab.client, "next"):
            lab.watch.kill()
    finally:
        lab.destroy_all()
