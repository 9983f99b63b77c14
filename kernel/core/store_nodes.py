"""What of domains and devices stands in the store, in the places and words of libxl.

The hypervisor knows the devices' states, so it says them; front ends and back ends of Xen do so themselves.
"""

from enum import IntEnum

from kernel.abi.guest_config import GuestConfig
from kernel.abi.ids import DOM0, DomId, Peer
from kernel.abi.store_io import StoreNode
from kernel.core.vbds import Vbd

__all__ = ["XenbusState", "domain_nodes", "guest_gone", "vbd_nodes", "vbd_states"]

XVDA, MINORS = 51712, 16
"""Numbers of virtual devices (`docs/man/xen-vbd-interface.7`): xvda is major 202, minor 0, and xvdb is 16 further."""

KIB_OF_MIB = 1024


class XenbusState(IntEnum):
    """`xen/include/public/io/xenbus.h`, those that a device comes through here."""

    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4


def domain_nodes(domid: DomId, name: str, config: GuestConfig | None) -> tuple[StoreNode, ...]:
    """A domain's own folder. It reads all of it, and writes below `data`. `config`: that of a guest."""
    folder = f"/local/domain/{domid}"
    values = {"": "", "/name": name, "/domid": str(domid), "/control": "", "/device": ""}
    if config is not None:
        values["/memory/target"] = values["/memory/static-max"] = str(config.memory * KIB_OF_MIB)
        values |= {f"/cpu/{cpu}/availability": "online" for cpu in range(config.vcpus)}
    own = "/data" if config is not None else "/backend"
    nodes = [StoreNode(folder + path, value, DOM0, domid) for path, value in values.items()]
    return (*nodes, StoreNode(folder + own, "", domid))


def vbd_nodes(vbd: Vbd, active: Peer | None) -> tuple[StoreNode, ...]:
    """Both ends of a vbd whose guest runs. The image's path is for its driver and Dom0."""
    front, back = _front(vbd), _back(vbd)
    ours = {
        "": "",
        "/backend": back,
        "/backend-id": str(vbd.driver),
        "/virtual-device": str(_number(vbd)),
        "/device-type": "disk",
    }
    theirs = {
        "": "",
        "/frontend": front,
        "/frontend-id": str(vbd.guest),
        "/online": "1",
        "/removable": "0",
        "/dev": vbd.vdev,
        "/mode": "r" if vbd.read_only else "w",
        "/sectors": str(vbd.sectors),
        "/sector-size": "512",
    }
    return (
        *(StoreNode(front + path, value, vbd.guest, vbd.driver) for path, value in ours.items()),
        *(StoreNode(back + path, value, vbd.driver, vbd.guest) for path, value in theirs.items()),
        StoreNode(f"{back}/params", vbd.target, vbd.driver),
        *vbd_states(vbd, active),
    )


def vbd_states(vbd: Vbd, active: Peer | None) -> tuple[StoreNode, ...]:
    """How far each end is. `active`: the incarnation of the driver that serves, if any does."""
    front, back = XenbusState.INITIALISING, XenbusState.INITIALISING
    if active is not None:
        back = XenbusState.INIT_WAIT
        if active in vbd.rings:
            front = XenbusState.INITIALISED
        if vbd.rings.get(active):
            front = back = XenbusState.CONNECTED
    return (
        StoreNode(f"{_front(vbd)}/state", str(front.value), vbd.guest, vbd.driver),
        StoreNode(f"{_back(vbd)}/state", str(back.value), vbd.driver, vbd.guest),
    )


def guest_gone(domid: DomId, vbds: list[Vbd]) -> tuple[StoreNode, ...]:
    """A guest's incarnation has ended: its folder goes, and what its drivers had for it."""
    folders = dict.fromkeys(f"/local/domain/{vbd.driver}/backend/vbd/{domid}" for vbd in vbds)
    return tuple(StoreNode(path, None, DOM0) for path in (*folders, f"/local/domain/{domid}"))


def _front(vbd: Vbd) -> str:
    return f"/local/domain/{vbd.guest}/device/vbd/{_number(vbd)}"


def _back(vbd: Vbd) -> str:
    return f"/local/domain/{vbd.driver}/backend/vbd/{vbd.guest}/{_number(vbd)}"


def _number(vbd: Vbd) -> int:
    return XVDA + MINORS * (ord(vbd.vdev[-1]) - ord("a"))
