"""Domain → hypervisor: the hypercalls, in groups as in Xen, and the few words that need no answer. Those that only Dom0
may make are in `kernel.abi.domctl`.

Every hypercall carries the caller's own `request` number and gets one `Reply` with it.
A message that is none of these gets ENOSYS where it has a request number, and is a fault where it has not.
Descriptors ride in the packet in the order of the messages that carry them; `DESCRIPTORS` says how many each has.

Ports and grant references are chosen by the caller, among those it has free (Xen does so for grants, not for
ports): a frontend can then grant, allocate and announce in one packet, and a reconnection costs one trip less.
"""

import enum
from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.domctl import (
    DomctlCreate,
    DomctlDestroy,
    DomctlDumpCore,
    DomctlGetInfo,
    DomctlPause,
    DomctlRename,
    DomctlShutdown,
    DomctlTrigger,
    DomctlUnpause,
    DomctlUpdateConfig,
    SysctlDrivers,
    SysctlInfo,
    SysctlInject,
    SysctlRestart,
    SysctlStandby,
)
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.ids import U32, U63, GrantRef, Name, Peer, Port, Request, VbdHandle

__all__ = [
    "DESCRIPTORS",
    "Access",
    "ChannelKind",
    "ConsoleConnect",
    "ConsoleFault",
    "EvtchnAllocUnbound",
    "EvtchnBindInterdomain",
    "EvtchnClose",
    "EvtchnResolve",
    "GnttabEnd",
    "GnttabGrant",
    "GnttabMap",
    "Hypercall",
    "ImageProbed",
    "OrderDone",
    "PauseDone",
    "Pong",
    "SchedShutdown",
    "SchedSoftReset",
    "Started",
    "Version",
    "XenbusConnect",
    "XenbusConnected",
    "XenbusFault",
    "XenbusStalled",
    "XenstoreClosed",
    "XenstoreConnect",
]

PortNumber = Annotated[Port, Meta(ge=1, le=0xFFFF)]
Ref = Annotated[GrantRef, Meta(ge=1, le=0xFFFF)]
Handle = Annotated[VbdHandle, Meta(ge=1, le=0xFFFF_FFFF)]
Detail = Annotated[str, Meta(max_length=512)]


class Access(enum.IntEnum):
    """What a grant allows its peer. The owner always writes."""

    READ = 1
    READ_WRITE = 2


class ChannelKind(enum.IntEnum):
    """MESSAGE: packets of msgpack. DOORBELL: a byte that says "look at the ring"; full means already rung."""

    MESSAGE = 1
    DOORBELL = 2


class Started(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The domain's own code runs.

    Caller:  any domain, once, when it can take upcalls. No answer.
    Promise: the hypervisor counts the domain as running from here on, and begins its heartbeat.
    """


class Pong(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Answer to `Ping`, given only after every loop of the domain was seen to turn.

    Caller:  any domain. No answer.
    Fault:   none; a wrong `sequence` counts as silence.
    """

    sequence: U32


class PauseDone(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Answer to `PauseRequested`: done, or `why` not.

    Caller:  a PV guest's actor. No answer.
    Promise: a guest that says so after it was to pause stands still: its processes were seen to use no CPU time.
    Fault:   a native guest's; the hypervisor stops that itself. A wrong `sequence` counts as silence.
    """

    sequence: U32
    why: Detail = ""


class OrderDone(Struct, tag=0x3E, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Answer to `SysrqRequested` and `CoreRequested`: done, or `why` not.

    Caller:  a PV guest's actor. No answer.
    Fault:   none; a wrong `order` counts as silence.
    """

    order: U32
    why: Detail = ""


class Version(Struct, tag=0x08, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask what hypervisor this is (`XENVER_version`).

    Caller:  any domain.
    Promise: the reply's value is a map `{version, abi, run}`.
    """

    request: Request


class SchedShutdown(Struct, tag=0x10, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The caller has ended its work (`SCHEDOP_shutdown`). What follows is the domain's `on_*` setting.

    Caller:  any domain, for itself, once.
    Promise: an OK, then the end of the whole domain.
    Errors:  EEXIST it has said so already.
    """

    request: Request
    reason: ShutdownReason
    detail: Detail


class SchedSoftReset(Struct, tag=0x11, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The caller's process has died and another has taken its place, in the same incarnation (`SHUTDOWN_soft_reset`).

    Caller:  a guest's reaper, after the last word of the one process and before the first of the other. No answer but
    `SoftReset`.
    Promise: every port, grant and ring of the caller's is gone, whoever shared one is told `PeerReset`, the ping that
    was on its way counts as answered. After `SoftReset` each backend of each vbd is offered anew, and those who serve
    are said to be active. A backend keeps its images: it serves the next ring in the place of the earlier one.
    Fault:   none; `how` is for the log, the end of the process before.
    """

    how: Annotated[str, Meta(max_length=128)]


class EvtchnAllocUnbound(Struct, tag=0x18, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Open `port` of the caller for one named peer to bind.

    Caller:  any domain.
    Promise: only `remote` can bind it (with `ANY_GENERATION`, the first of its incarnations that does). The caller then
             gets `EvtchnConnected` with its descriptor. The port is free again when the other end has died.
    Errors:  EEXIST the port is in use, ENOSPC too many ports, ESTALE that incarnation has ended, ENOENT no such domain.
    """

    request: Request
    port: PortNumber
    remote: Peer
    kind: ChannelKind


class EvtchnBindInterdomain(Struct, tag=0x19, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Bind the caller's `port` to an unbound port of a peer.

    Caller:  the peer that the unbound port names.
    Promise: an OK carries one descriptor, an AF_UNIX SEQPACKET socket, handed out once.
    Errors:  EPERM unbound for another, ENOENT no such port, EEXIST the caller's port is in use, ESTALE the peer has
             ended.
    """

    request: Request
    port: PortNumber
    remote: Peer
    remote_port: PortNumber


class EvtchnClose(Struct, tag=0x1A, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Give a port up. The descriptors are the ends' own affair.

    Caller:  the port's owner.
    Errors:  ENOENT no such port.
    """

    request: Request
    port: PortNumber


class EvtchnResolve(Struct, tag=0x1B, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Ask which incarnation a named guest has now, to speak with it: what a guest of Xen reads from xenstore.

    Caller:  a guest, of the names in its configuration's `peers`.
    Promise: the value is that incarnation's `Peer`, once its own code runs; else null.
    Errors:  EPERM a name that is not among its peers.
    """

    request: Request
    name: Name


class GnttabGrant(Struct, tag=0x20, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Let one peer map one sealed memfd. Carries one descriptor.

    Caller:  any domain.
    Promise: nobody but `to` can map it, and `to` can once. It cannot be revoked, only ended before it is mapped.
    Errors:  EEXIST the reference is in use, ENOSPC too many grants, ESTALE `to` has ended, ENOENT no such domain,
             EINVAL not a memfd sealed against shrinking and growing.
    """

    request: Request
    ref: Ref
    to: Peer
    access: Access


class GnttabMap(Struct, tag=0x21, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Map memory that another domain granted to the caller.

    Caller:  any domain, for a grant that names it and this generation.
    Promise: an OK carries exactly one descriptor. The caller checks its seals and size before it maps it.
    Errors:  EPERM granted to another, or less than `access`; ESTALE the owner's generation has ended; ENOENT no such
    grant.
    Fault:   none; a wrong ref is a refusal, not a crime.
    """

    request: Request
    owner: Peer
    ref: Ref
    access: Access


class GnttabEnd(Struct, tag=0x22, array_like=True, frozen=True, forbid_unknown_fields=True):
    """End a grant and free its reference. A peer that has mapped it keeps its mapping.

    Caller:  the grant's owner.
    Errors:  ENOENT no such grant.
    """

    request: Request
    ref: Ref


class XenbusConnect(Struct, tag=0x28, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A frontend's ring for one incarnation of its backend (`ring-ref` and `event-channel` of Xen's blkif).

    Caller:  the guest that owns the vbd.
    Promise: the backend is told by `VbdRing`; the frontend by `VbdConnected` when the backend has mapped it.
    Errors:  ENOENT no such vbd of the caller, ESTALE that backend has ended, EEXIST it was given a ring already.
    """

    request: Request
    handle: Handle
    backend: Peer
    out_ref: Ref
    in_ref: Ref
    port: PortNumber


class XenbusConnected(Struct, tag=0x29, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The backend has mapped a frontend's ring.

    Caller:  the backend named in that ring's `XenbusConnect`.
    Errors:  ENOENT not a vbd of the caller, ESTALE the frontend has ended, EEXIST it was said already.
    """

    request: Request
    handle: Handle
    frontend: Peer


class XenbusFault(Struct, tag=0x2A, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The other end of a vbd broke the ring's rules; `what` and `evidence` go to the log.

    Caller:  either end of the vbd, about the other end.
    Promise: a frontend's word ends that backend incarnation, a bounded number of times; a backend's word ends the
    guest.
    Errors:  ENOENT not a vbd of the caller's, ESTALE the accused has ended already.
    """

    request: Request
    handle: Handle
    peer: Peer
    what: Detail
    evidence: Detail


class ConsoleConnect(Struct, tag=0x2B, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The caller's console ring for one incarnation of the console driver.

    Caller:  a guest.
    Promise: the driver is told by `ConsoleRing`.
    Errors:  ESTALE that incarnation has ended, or serves no more, EEXIST it was given a ring already.
    """

    request: Request
    backend: Peer
    out_ref: Ref
    in_ref: Ref
    port: PortNumber


class ConsoleFault(Struct, tag=0x2C, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The other end of a console ring broke its rules; `what` and `evidence` go to the log.

    Caller:  either end, about the other end.
    Promise: as for `XenbusFault`.
    Errors:  ENOENT no console ring of the caller's with that peer, ESTALE the accused has ended already.
    """

    request: Request
    peer: Peer
    what: Detail
    evidence: Detail


class XenbusStalled(Struct, tag=0x2D, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The backend of a vbd has owed an answer for a while: see whether it lives. To say so of a slow one is no wrong.

    Caller:  the guest that owns the vbd, about the backend in use.
    Promise: the backend is asked for a sign of life soon (`Ping`), as busy domains are asked all the time.
    Errors:  ENOENT not a vbd of the caller's, ESTALE that backend has ended.
    """

    request: Request
    handle: Handle
    backend: Peer


class ImageProbed(Struct, tag=0x2E, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Answer to `ImageProbe`: a disk of `size_bytes`, that stands on what the image calls `backing`, "" for nothing; or
    `why` it cannot be served.

    Caller:  a backend. No answer.
    Promise: a backend that lies harms the vbds that it would serve, and nobody else.
    Fault:   none; a wrong `probe` counts as silence.
    """

    probe: U32
    size_bytes: U63 = 0
    backing: Annotated[str, Meta(max_length=4096)] = ""
    why: Detail = ""


class XenstoreConnect(Struct, tag=0x40, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Reach the store. What is said there: `kernel.abi.store_io`.

    Caller:  any domain.
    Promise: an OK with one descriptor, a message channel to the store; also while none serves, since the next one finds
             it. Each incarnation has one connection: a channel that it had before is closed, and what the store knows
             of it (its watches, its transactions, its last request) goes on in the new one.
    Errors:  ENOENT this hypervisor has no store, EAGAIN too often in a short time.
    """

    request: Request


class XenstoreClosed(Struct, tag=0x41, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A client has left, or was made to go: what was kept for it may go. A domain that comes again has another number.

    Caller:  the store, of a `XenstoreStream` or a `XenstoreClient`. No answer.
    Fault:   none; a number that is not known any more is nothing.
    """

    connection: U63


Hypercall = (
    Started
    | Pong
    | PauseDone
    | OrderDone
    | Version
    | SchedShutdown
    | SchedSoftReset
    | EvtchnAllocUnbound
    | EvtchnBindInterdomain
    | EvtchnClose
    | EvtchnResolve
    | GnttabGrant
    | GnttabMap
    | GnttabEnd
    | XenbusConnect
    | XenbusConnected
    | XenbusFault
    | ConsoleConnect
    | ConsoleFault
    | XenbusStalled
    | ImageProbed
    | XenstoreConnect
    | XenstoreClosed
    | DomctlCreate
    | DomctlDestroy
    | DomctlShutdown
    | DomctlGetInfo
    | DomctlPause
    | DomctlUnpause
    | DomctlRename
    | DomctlUpdateConfig
    | DomctlTrigger
    | DomctlDumpCore
    | SysctlInfo
    | SysctlDrivers
    | SysctlInject
    | SysctlRestart
    | SysctlStandby
)

DESCRIPTORS: dict[type[Struct], int] = {GnttabGrant: 1}
"""Descriptors that ride along with a message; none where it is not listed."""
