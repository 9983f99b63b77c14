"""A piece of what `make soak` does for an hour: random kills of every part, nothing lost, nothing left behind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.acts import ACTS
from tests.soak.campaign import soak
from tests.soak.holdings import Holdings, grown
from tests.soak.leaks import find_leaks

SECONDS, SEED = 3.0, 4
TIMES = 20


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="triovisor-soak.") as name:
        yield Path(name)


def test_every_part_dies_under_eight_guests_and_nothing_is_lost(run, folder):
    outcome = soak(run, folder, SEED, SECONDS, print)
    assert set(outcome.acts) == set(ACTS)
    assert outcome.operations > 0 < outcome.records
    assert outcome.grown == {}


def test_restarts_and_guests_that_come_and_go_leave_nothing(tmp_path, folder):
    assert find_leaks(tmp_path, folder, TIMES, print) == {}


def test_what_there_is_more_of_is_told():
    before = Holdings(40, 265, 38.0, 16, 0, 20, 6)
    assert grown(before, Holdings(41, 400, 60.0, 17, 1, 21, 7)) == {
        "descriptors": (40, 41),
        "maps": (265, 400),
        "memory_mib": (38.0, 60.0),
        "processes": (16, 17),
        "zombies": (0, 1),
        "mounts": (20, 21),
        "files": (6, 7),
    }
    assert grown(before, Holdings(39, 270, 40.0, 16, 0, 20, 6)) == {}
