"""How a guest is told of what it was given: once, and again where it seems not to have heard."""

import os

import pytest

from domains.frontends.guest_end import LOOK_AGAIN_S, PATIENCE, PATIENT_LOOK_S, GuestEnd
from tests.domains.virtio.guest_driver import GuestDriver
from tests.promises.events import wait_until


@pytest.fixture
def guest():
    made = GuestDriver()
    yield made
    made.close()


@pytest.fixture
def call():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def end(guest, call):
    made = GuestEnd()
    made.set_call(call)
    made.start(guest.queue(), guest.view)
    return made


def signals(call: int) -> int:
    """So many since the last look."""
    try:
        return os.eventfd_read(call)
    except BlockingIOError:
        return 0


def give(end: GuestEnd) -> None:
    assert end.queue is not None
    end.queue.publish(0, 1)
    end.signal_if_wanted()


def test_a_guest_is_signalled_once_for_what_it_was_given(guest, end, call):
    give(end)
    end.signal_if_wanted()
    assert signals(call) == 1
    guest.completed()
    assert end.nudge() is None


def test_a_guest_that_does_not_look_is_signalled_again_after_a_moment(guest, end, call):
    give(end)
    assert signals(call) == 1
    left_s = end.nudge()
    assert left_s is not None
    assert 0 < left_s <= LOOK_AGAIN_S
    wait_until(lambda: end.nudge() and end.resignalled == 1, "a second signal")
    assert signals(call) == 1
    guest.completed()
    assert end.nudge() is None
    assert (signals(call), end.resignalled) == (0, 1)


def test_a_guest_that_never_looks_is_signalled_ever_more_seldom(end):
    give(end)
    wait_until(lambda: end.nudge() and end.resignalled == PATIENCE, "the end of patience")
    left_s = end.nudge()
    assert left_s is not None
    assert left_s > LOOK_AGAIN_S
    assert left_s <= PATIENT_LOOK_S


def test_a_guest_whose_queue_is_gone_is_signalled_no_more(end, call):
    give(end)
    signals(call)
    end.stop()
    assert end.nudge() is None
    end.signal_if_wanted()
    assert signals(call) == 0
