"""The data loop: it sleeps when there is nothing, and whatever is to wake it does."""

import os
import threading

import pytest

from domains.runtime.data_loop import DataLoop

DEADLINE_S = 5.0


class Rings:
    """Rings that have nothing, and say when they were asked to be parked."""

    def __init__(self) -> None:
        self.parked = threading.Event()
        self.broken = False

    def serve(self) -> bool:
        if self.broken:
            raise RuntimeError("broken")
        return False

    def park(self) -> float | None:
        self.parked.set()
        return None


@pytest.fixture
def rings():
    return Rings()


@pytest.fixture
def crashes():
    return []


@pytest.fixture
def loop(rings, crashes):
    made = DataLoop("test", rings, on_crash=crashes.append)
    made.start()
    yield made
    stopping = threading.Thread(target=made.stop)
    stopping.start()
    while stopping.is_alive():  # one that no command wakes is not to hang the run
        made.wake()
        stopping.join(0.1)


def put_to_sleep(loop: DataLoop, rings: Rings) -> None:
    """Wait until it has parked its rings."""
    rings.parked.clear()
    loop.wake()
    assert rings.parked.wait(DEADLINE_S)


def wait_done(loop: DataLoop) -> None:
    """Wait until it has done what was submitted before."""
    done = threading.Event()
    loop.submit(done.set)
    assert done.wait(DEADLINE_S)


def test_a_command_wakes_a_loop_that_sleeps(loop, rings):
    for _ in range(20):
        put_to_sleep(loop, rings)
        wait_done(loop)


def test_commands_are_done_in_order_on_the_loops_thread(loop):
    done: list[tuple[int, str]] = []
    for number in range(50):
        loop.submit(lambda number=number: done.append((number, threading.current_thread().name)))
    wait_done(loop)
    assert done == [(number, "test") for number in range(50)]


@pytest.mark.parametrize("edge", [True, False])
def test_a_descriptor_that_is_readable_wakes_a_loop_that_sleeps(loop, rings, edge):
    bell, rung = os.eventfd(0), threading.Event()

    def ring():
        if not edge:
            os.eventfd_read(bell)
        rung.set()

    loop.submit(lambda: loop.watch(bell, ring, edge=edge))
    wait_done(loop)
    for _ in range(5):
        put_to_sleep(loop, rings)
        rung.clear()
        os.eventfd_write(bell, 1)
        assert rung.wait(DEADLINE_S)
    loop.submit(lambda: loop.unwatch(bell))
    wait_done(loop)
    rung.clear()
    os.eventfd_write(bell, 1)
    put_to_sleep(loop, rings)
    assert not rung.is_set()
    os.close(bell)


def test_a_loop_with_nothing_to_do_sleeps(loop, rings):
    put_to_sleep(loop, rings)
    turns = loop.turns
    threading.Event().wait(0.1)
    assert loop.turns - turns < 5


def test_a_loop_that_breaks_says_so_and_ends(loop, rings, crashes):
    put_to_sleep(loop, rings)
    rings.broken = True
    loop.wake()
    loop._thread.join(DEADLINE_S)
    assert [str(crash) for crash in crashes] == ["broken"]
