"""The table of vbds: no domain speaks for a vbd that is not its own."""

import pytest

from kernel.abi.ids import DomId, Generation, Peer, VbdHandle
from kernel.abi.status import Refused, Status
from kernel.core.vbds import VbdTable

GUEST = Peer(DomId(5), Generation(1))
BACKEND = Peer(DomId(1), Generation(3))
STRANGER = Peer(DomId(9), Generation(1))


@pytest.fixture
def table():
    table = VbdTable()
    vbd = table.add(vdev="vda", guest=GUEST.domid, driver=BACKEND.domid, sectors=8, read_only=False, target="/x")
    vbd.frontend = GUEST
    return table


def test_a_ring_goes_from_connecting_to_connected(table):
    vbd = table.connect(GUEST, VbdHandle(1), BACKEND)
    assert vbd.state(BACKEND) == "connecting"
    table.connected(BACKEND, VbdHandle(1), GUEST)
    assert vbd.state(BACKEND) == "connected"
    assert vbd.state(None) == "waiting"


@pytest.mark.parametrize(
    ("caller", "backend"), [(STRANGER, BACKEND), (GUEST, STRANGER), (Peer(GUEST.domid, Generation(2)), BACKEND)]
)
def test_only_the_frontend_connects_and_only_to_its_driver(table, caller, backend):
    with pytest.raises(Refused) as caught:
        table.connect(caller, VbdHandle(1), backend)
    assert caught.value.status is Status.ENOENT


def test_a_backend_cannot_connect_a_ring_that_it_was_never_given(table):
    with pytest.raises(Refused):
        table.connected(BACKEND, VbdHandle(1), GUEST)


def test_each_step_of_a_ring_is_made_once(table):
    table.connect(GUEST, VbdHandle(1), BACKEND)
    with pytest.raises(Refused) as caught:
        table.connect(GUEST, VbdHandle(1), BACKEND)
    assert caught.value.status is Status.EEXIST
    table.connected(BACKEND, VbdHandle(1), GUEST)
    with pytest.raises(Refused) as caught:
        table.connected(BACKEND, VbdHandle(1), GUEST)
    assert caught.value.status is Status.EEXIST


def test_a_ring_is_not_connected_to_another_incarnation_of_its_guest(table):
    table.connect(GUEST, VbdHandle(1), BACKEND)
    with pytest.raises(Refused) as caught:
        table.connected(BACKEND, VbdHandle(1), Peer(GUEST.domid, Generation(2)))
    assert caught.value.status is Status.ESTALE


@pytest.mark.parametrize(
    ("caller", "accused"), [(GUEST, STRANGER), (STRANGER, GUEST), (STRANGER, BACKEND), (GUEST, GUEST)]
)
def test_nobody_accuses_a_stranger(table, caller, accused):
    table.connect(GUEST, VbdHandle(1), BACKEND)
    with pytest.raises(Refused):
        table.shared_by(caller, VbdHandle(1), accused)
    assert table.shared_by(GUEST, VbdHandle(1), BACKEND) is table.shared_by(BACKEND, VbdHandle(1), GUEST)
