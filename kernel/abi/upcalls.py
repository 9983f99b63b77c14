"""Hypervisor → domain: answers to hypercalls, and what the domain is told unasked."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from kernel.abi.codec import PART_BYTES
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.hypercalls import ChannelKind
from kernel.abi.ids import U32, U63, DomId, GrantRef, Name, Peer, Port, RequestId, VbdHandle
from kernel.abi.status import Status
from kernel.abi.store_io import StoreNode

__all__ = [
    "NAMED_GUESTS",
    "AdminConnection",
    "BackendActive",
    "BackendOffered",
    "BackendWithdrawn",
    "ConsoleBackend",
    "ConsoleRing",
    "CoreRequested",
    "DriverGivenUp",
    "EvtchnConnected",
    "ImageProbe",
    "Misbehave",
    "PauseRequested",
    "PeerDied",
    "PeerReset",
    "Ping",
    "Reply",
    "ReplyPart",
    "ShutdownRequested",
    "SoftReset",
    "SysrqRequested",
    "Upcall",
    "VbdAttached",
    "VbdBacking",
    "VbdConnected",
    "VbdDetached",
    "VbdImage",
    "VbdRing",
    "XenstoreActive",
    "XenstoreClient",
    "XenstoreDomains",
    "XenstoreGone",
    "XenstoreIntroduce",
    "XenstorePut",
    "XenstoreRelease",
    "XenstoreStream",
]


NAMED_GUESTS = 32
"""A list of names that fits a packet and a line of the log."""


class Reply(Struct, tag=0x80, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How the hypercall with this `request` ended. `descriptors` ride along (0 or 1); `why` is one line for a
    person."""

    request: RequestId
    status: Status
    value: Any = None
    why: str = ""
    descriptors: Annotated[int, Meta(ge=0, le=1)] = 0


class ReplyPart(Struct, tag=0x84, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A piece of a value that is too long for a packet. The pieces together are its msgpack; the `Reply` that follows
    has none."""

    request: RequestId
    data: Annotated[bytes, Meta(max_length=PART_BYTES)]


class Ping(Struct, tag=0x81, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Say `Pong` before the deadline, after seeing each of your loops turn. Silence is a hang: sampled, ended,
    restarted."""

    sequence: U32


class PeerDied(Struct, tag=0x82, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An incarnation that shared a port, a grant or a vbd with the caller has ended, with all its threads."""

    peer: Peer


class ShutdownRequested(Struct, tag=0x83, array_like=True, frozen=True, forbid_unknown_fields=True):
    """End your work. A guest's actor asks its operating system; others finish and exit. After a grace the
    domain is ended."""

    reason: ShutdownReason


class PauseRequested(Struct, tag=0x85, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a guest: have your operating system stand still, or go on, and say `PauseDone`. It may do so already. Comes
    again only after that answer."""

    sequence: U32
    paused: bool


class SysrqRequested(Struct, tag=0xA2, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a PV guest: tell your kernel this key of Magic SysRq, and say `OrderDone`."""

    order: U32
    key: Annotated[str, Meta(pattern=r"^[a-z0-9]\Z")]


class CoreRequested(Struct, tag=0xA3, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a PV guest: write an ELF core of your operating system's memory, and say `OrderDone`. Carries one descriptor,
    a new file; a core is whole once it has its header, which is written last."""

    order: U32


class SoftReset(Struct, tag=0x86, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Answer to `SchedSoftReset`: what came before this was for the process that has died, what comes after it is for
    its successor."""


class PeerReset(Struct, tag=0x87, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An incarnation that shared a port with the caller lives, but its process was replaced: ports and grants are gone
    as if it had died."""

    peer: Peer


class EvtchnConnected(Struct, tag=0x88, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The peer has bound your unbound port. Carries one descriptor."""

    port: Port
    peer: Peer
    kind: ChannelKind


class VbdAttached(Struct, tag=0x90, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: you serve this vbd. Its ring comes with `VbdRing`, its image with `VbdImage`, in any order."""

    handle: VbdHandle
    sectors: int
    read_only: bool


class VbdRing(Struct, tag=0x91, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: a frontend's ring for you. Map both grants, bind the port, say `XenbusConnected`."""

    handle: VbdHandle
    frontend: Peer
    out_ref: GrantRef
    in_ref: GrantRef
    port: Port


class VbdImage(Struct, tag=0x92, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: the vbd's image, one descriptor, an open file description of this incarnation's own.

    It comes only when every predecessor is gone with all its threads. Having it is the leave to serve.
    """

    handle: VbdHandle


class VbdDetached(Struct, tag=0x93, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: the vbd is gone. Finish nothing, forget it, close its image."""

    handle: VbdHandle


class ImageProbe(Struct, tag=0x94, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: look into this image, which may become a vbd's, and say `ImageProbed`. Carries one descriptor,
    which can only be read. An image is a stranger's work: who looks into one does it in a jail."""

    probe: U32


class VbdBacking(Struct, tag=0x95, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a backend: what the vbd's image stands on, one descriptor that can only be read. The `VbdImage` follows."""

    handle: VbdHandle


class BackendOffered(Struct, tag=0x98, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a frontend: an incarnation that serves this vbd, or stands by to. Make a ring for it: `XenbusConnect`."""

    handle: VbdHandle
    backend: Peer


class VbdConnected(Struct, tag=0x99, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a frontend: the backend has mapped your ring."""

    handle: VbdHandle
    backend: Peer


class BackendActive(Struct, tag=0x9A, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a frontend: from now on this backend serves. Re-post to it what is in flight, oldest first.

    `take_published` says whether the replies that its predecessor had published may still be taken (it died
    a clean death), or none (it broke the ABI).
    """

    handle: VbdHandle
    backend: Peer
    take_published: bool


class BackendWithdrawn(Struct, tag=0x9B, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a frontend: this backend is gone. Drop its ring once its successor is active."""

    handle: VbdHandle
    backend: Peer


class ConsoleBackend(Struct, tag=0x9C, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a guest: this incarnation serves consoles now, and every one before it is gone. Make a ring for it:
    `ConsoleConnect`."""

    backend: Peer


class ConsoleRing(Struct, tag=0x9D, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the console driver: a guest's console ring for you. Map both grants, bind the port."""

    frontend: Peer
    name: str
    out_ref: GrantRef
    in_ref: GrantRef
    port: Port


class AdminConnection(Struct, tag=0xA0, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To Dom0: an administrator whose uid the hypervisor has checked. Carries the connection, one descriptor."""

    uid: int


class DriverGivenUp(Struct, tag=0xA1, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To Dom0: this driver died too often and is left dead. `guests`, of whom 32 are named at most, have a disk of it
    and are being paused."""

    driver: Name
    deaths: int
    guests: Annotated[tuple[Name, ...], Meta(max_length=NAMED_GUESTS)]


class XenstoreActive(Struct, tag=0xB0, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: serve. Carries one descriptor, the memory in which every incarnation keeps what is not to be lost.

    It comes only when every predecessor is gone with all its threads. Having it is the leave to serve.
    """


class XenstoreDomains(Struct, tag=0xB1, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store, once, behind `XenstoreActive`: these domains are there, and no others."""

    peers: tuple[Peer, ...]


class XenstoreIntroduce(Struct, tag=0xB2, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: a domain has come. A guest that starts again is another one, with another generation."""

    peer: Peer


class XenstoreRelease(Struct, tag=0xB3, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: a domain is gone, and with it what it had."""

    peer: Peer


class XenstoreClient(Struct, tag=0xB4, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: a domain's connection, by a message channel, one descriptor. A number that is known has its channel
    in the place of an earlier one; another is never used again."""

    connection: U63
    domid: DomId


class XenstoreStream(Struct, tag=0xB5, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: an administrator's connection, which speaks the wire of `xen/include/public/io/xs_wire.h`. Said
    again to each incarnation until one says `XenstoreClosed`.

    Carries four descriptors: the stream, both ends of a pipe (read, write), and a memory of `SLOT_BYTES`. All outlive
    the incarnation, so that its successor goes on in the middle of a message.
    """

    connection: U63


class XenstoreGone(Struct, tag=0xB6, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: the incarnation with this connection has ended."""

    connection: U63


class XenstorePut(Struct, tag=0xB7, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To the store: these nodes, in one step. What is so already stays as it is, and nobody is told of it."""

    nodes: tuple[StoreNode, ...]


class Misbehave(Struct, tag=0xA8, array_like=True, frozen=True, forbid_unknown_fields=True):
    """To a driver: fail so, at the `count`-th time. `what` is an act, or `kill@POINT`, a fault point of its loop."""

    what: str
    count: int


Upcall = (
    Reply
    | ReplyPart
    | Ping
    | PeerDied
    | PeerReset
    | ShutdownRequested
    | PauseRequested
    | SoftReset
    | SysrqRequested
    | CoreRequested
    | EvtchnConnected
    | VbdAttached
    | VbdRing
    | VbdImage
    | VbdDetached
    | ImageProbe
    | VbdBacking
    | BackendOffered
    | VbdConnected
    | BackendActive
    | BackendWithdrawn
    | ConsoleBackend
    | ConsoleRing
    | AdminConnection
    | DriverGivenUp
    | XenstoreActive
    | XenstoreDomains
    | XenstoreIntroduce
    | XenstoreRelease
    | XenstoreClient
    | XenstoreStream
    | XenstoreGone
    | XenstorePut
    | Misbehave
)

DESCRIPTORS: dict[type[Struct], int] = {
    EvtchnConnected: 1,
    VbdImage: 1,
    ImageProbe: 1,
    VbdBacking: 1,
    AdminConnection: 1,
    CoreRequested: 1,
    XenstoreActive: 1,
    XenstoreClient: 1,
    XenstoreStream: 4,
}
"""Descriptors that ride along with a message. A `Reply` says its own number."""
