"""The rings of one vbd: however fast its backends follow each other, few of them are there at a time."""

import time
from collections.abc import Callable

import pytest

from domains.frontends.backing import Backing
from domains.frontends.device import MOST_ASIDE, RELEASE_AFTER_S, Device
from domains.frontends.vbd import Vbd
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.io.blkif import SMALL_RING_BYTES

DEATHS = 12


class NoWatch:
    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """No doorbell is attached here."""

    def unwatch(self, descriptor: int) -> None:
        """Nor any taken away."""


def peer(generation: int) -> Peer:
    return Peer(DomId(1), Generation(generation))


def is_there(backing: Backing) -> bool:
    try:
        return bool(backing.out_view.nbytes)
    except ValueError:
        return False


@pytest.fixture
def device():
    made = Device(Vbd(64, read_only=False, serial="s"), NoWatch(), lambda *_: None, lambda _: None)
    yield made
    made.close()


def follow(device: Device, *, served: bool) -> list[Backing]:
    """Backends that come and go at once; those that served leave their ring when the next one does."""
    made = []
    for generation in range(1, DEATHS + 1):
        backing = Backing.create(SMALL_RING_BYTES)
        backing.close_descriptors()
        made.append(backing)
        device.offer(peer(generation), backing)
        if served:
            device.activate(peer(generation), take_published=True)
        device.withdraw(peer(generation))
        assert sum(map(is_there, made)) <= MOST_ASIDE + 2
    return made


@pytest.mark.parametrize("served", [True, False])
def test_rings_that_nobody_uses_do_not_pile_up_and_all_are_given_back(device, served):
    made = follow(device, served=served)
    deadline = time.monotonic() + 20 * RELEASE_AFTER_S
    in_use = int(served)
    while sum(map(is_there, made)) > in_use:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [*map(is_there, made)].count(True) == in_use
    assert is_there(made[-1]) is served
