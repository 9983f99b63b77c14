"""A driver's death costs its guest nothing, whatever it was doing: ten in a row in each phase, deaths in recovery."""

import os
import signal

import pytest

from tests.promises.events import wait_until
from tests.promises.lab import DRIVER, start_lab, tree_with
from tests.promises.load import verified_load

DOOMED = 10

POINTS = {
    "connect": 1,  # before the ring is mapped
    "activate": 1,  # having been given the image, before the first request
    "request": 7,  # taken from the ring, before the I/O
    "io": 13,  # between the I/O and its reply
    "reply": 5,  # between the reply and the doorbell
}
"""Each point, and at which time it strikes."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tree_with(tmp_path_factory.mktemp("tree"), "blkback", "doomed")


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "cold"])
@pytest.mark.parametrize(("point", "count"), POINTS.items(), ids=list(POINTS))
def test_ten_crashes_in_a_row_at_one_point_lose_nothing(tmp_path, tree, images, point, count, standby):
    options = f'{{ point = "{point}", count = {count}, generations = {DOOMED} }}'
    with start_lab(tmp_path, tree=tree, role="drivers.blkback.doomed", standby=standby, options=options) as lab:
        lab.create("g", images(f"doomed-{point}", 8))
        with verified_load(lab.client, "g"):
            wait_until(lambda: len(lab.watch.dead()) == DOOMED, f"{DOOMED} crashes at {point}")
            lab.watch.kill()
        hows = [death["how"] for death in lab.watch.dead().values()]
        assert hows == ["killed by SIGSEGV"] * DOOMED + ["killed by SIGKILL"]


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    patient = "{ interval_s = 0.1, deadline_s = 30 }"  # a stopped driver is not to be taken for a hung one
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param, heartbeat=patient) as started:
        yield started


@pytest.fixture
def guest(lab, images):
    lab.create("g", images("any-point", 8))
    yield "g"
    lab.destroy_all()


@pytest.mark.parametrize("point", ["request", "io", "reply"])
@pytest.mark.parametrize("count", [1, 100])
def test_a_crash_ordered_at_a_point_strikes_there_under_load_and_loses_nothing(lab, guest, point, count):
    with verified_load(lab.client, guest):
        deaths = [lab.watch.strike(lambda _pid: lab.client.inject(DRIVER, f"crash@{point}", count)) for _ in range(3)]
    assert {death["how"] for death in deaths} == {"killed by SIGSEGV"}


def test_requests_posted_to_a_driver_that_never_saw_them_go_to_its_successor(lab, guest):
    """Stopped, it takes nothing from its ring and hears no doorbell; the guest posts all the same."""

    def all_waits() -> bool:
        """There are requests in flight, and between two looks none was answered or added."""
        look = ("cat", "/sys/block/vda/inflight", "/sys/block/vda/stat")
        before, after = lab.run_in(guest, *look).split(), lab.run_in(guest, *look).split()
        return before[:2] == after[:2] != [b"0", b"0"] and completed(before) == completed(after)

    def completed(words: list[bytes]) -> tuple[bytes, bytes]:
        """Reads and writes that have ended (Documentation/block/stat.rst)."""
        return words[2], words[6]

    def kill_with_requests_unseen(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        wait_until(all_waits, "all of the load waits")
        os.kill(pid, signal.SIGKILL)

    with verified_load(lab.client, guest):
        for _ in range(5):
            lab.watch.strike(kill_with_requests_unseen)


def wait_step(lab, step: str, since: int) -> str:
    """The incarnation of the driver that the log, from `since` on, first tells this step of."""
    key = "backend" if step == "vbd.connected" else "peer"
    events = wait_until(lambda: [e for e in lab.log.all(step, since) if lab.watch.pid_of(e[key])], step)
    peer: str = events[0][key]
    return peer


@pytest.mark.parametrize("step", ["domain.cloned", "domain.started", "driver.activated", "vbd.connected"])
def test_a_successor_that_is_killed_on_its_way_is_followed_by_another(lab, guest, step):
    """Kill the driver, and whoever comes next at the moment the log tells of that step of its life."""
    with verified_load(lab.client, guest):
        for _ in range(5):
            before = lab.watch.wait_serving()
            since = lab.log.mark()
            os.kill(lab.watch.pid_of(before), signal.SIGKILL)
            successor = wait_step(lab, step, since)
            os.kill(lab.watch.pid_of(successor), signal.SIGKILL)
            lab.watch.wait_death(successor)
            lab.watch.wait_serving(other_than=before)
