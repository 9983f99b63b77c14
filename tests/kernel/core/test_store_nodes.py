"""What of domains and devices stands in the store: libxl's places, and states that agree with the rings."""

import pytest

from kernel.abi.guest_config import GuestConfig
from kernel.abi.ids import DOM0, DomId, Generation, Peer, VbdHandle
from kernel.core.store_nodes import domain_nodes, guest_gone, vbd_nodes, vbd_states
from kernel.core.vbds import Vbd

GUEST, DRIVER = DomId(5), DomId(1)
ACTIVE, STANDBY = Peer(DRIVER, Generation(3)), Peer(DRIVER, Generation(4))
FRONT, BACK = "/local/domain/5/device/vbd/51728", "/local/domain/1/backend/vbd/5/51728"


def vbd(**rings):
    peers = {"active": ACTIVE, "standby": STANDBY}
    return Vbd(
        VbdHandle(7), "vdb", GUEST, DRIVER, 2048, True, "/images/x", rings={peers[k]: v for k, v in rings.items()}
    )


def test_a_guest_reads_its_folder_and_writes_below_data_alone():
    nodes = {node.path: node for node in domain_nodes(GUEST, "web", GuestConfig(name="web", memory=64, vcpus=2))}
    assert nodes["/local/domain/5/name"].value == "web"
    assert nodes["/local/domain/5/memory/target"].value == "65536"
    assert nodes["/local/domain/5/cpu/1/availability"].value == "online"
    owned = [path for path, node in nodes.items() if node.owner == GUEST]
    assert owned == ["/local/domain/5/data"]
    assert all(node.reader == GUEST for path, node in nodes.items() if path not in owned)


def test_a_driver_has_a_folder_for_its_back_ends():
    nodes = {node.path: node for node in domain_nodes(DRIVER, "blkback", None)}
    assert nodes["/local/domain/1/backend"].owner == DRIVER
    assert "/local/domain/1/memory/target" not in nodes


def test_both_ends_of_a_vbd_name_each_other():
    nodes = {node.path: node for node in vbd_nodes(vbd(), ACTIVE)}
    assert nodes[f"{FRONT}/backend"].value == BACK
    assert nodes[f"{BACK}/frontend"].value == FRONT
    assert nodes[f"{BACK}/mode"].value == "r"
    assert (nodes[f"{FRONT}/state"].owner, nodes[f"{FRONT}/state"].reader) == (GUEST, DRIVER)
    assert (nodes[f"{BACK}/state"].owner, nodes[f"{BACK}/state"].reader) == (DRIVER, GUEST)


def test_a_guest_is_not_told_where_its_image_is():
    params = next(node for node in vbd_nodes(vbd(), ACTIVE) if node.path == f"{BACK}/params")
    assert (params.value, params.owner, params.reader) == ("/images/x", DRIVER, None)


@pytest.mark.parametrize(
    ("rings", "active", "front", "back"),
    [
        ({}, None, "1", "1"),
        ({}, ACTIVE, "1", "2"),
        ({"active": False}, ACTIVE, "3", "2"),
        ({"active": True}, ACTIVE, "4", "4"),
        ({"standby": True}, ACTIVE, "1", "2"),
        ({"standby": True}, None, "1", "1"),
    ],
)
def test_the_states_of_both_ends_say_how_far_the_ring_of_the_serving_driver_is(rings, active, front, back):
    states = {node.path: node.value for node in vbd_states(vbd(**rings), active)}
    assert states == {f"{FRONT}/state": front, f"{BACK}/state": back}


def test_nothing_stays_of_a_guest_that_is_gone():
    nodes = guest_gone(GUEST, [vbd(), vbd()])
    assert [node.path for node in nodes] == ["/local/domain/1/backend/vbd/5", "/local/domain/5"]
    assert all(node.value is None and node.owner == DOM0 for node in nodes)
