"""The state of a running hypervisor: its tables, and who is alive."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from kernel.abi.guest_config import GuestConfig, ShutdownReason
from kernel.abi.hypercalls import ImageProbed
from kernel.abi.ids import DomId, Peer, VbdHandle
from kernel.abi.log import Log
from kernel.abi.packet import Packet
from kernel.core.allowance import Allowance
from kernel.core.domains import DomainRecord, DomainTable
from kernel.core.drivers import Driver, Order
from kernel.core.evtchn import EventChannels
from kernel.core.grants import GrantTable
from kernel.core.pausing import Pausing
from kernel.core.unheard import Unheard
from kernel.core.vbds import VbdTable
from kernel.core_file import Core
from kernel.guest_folders import GuestFolders
from kernel.images import Image
from kernel.link import Link
from kernel.log_keeper import LogKeeper
from kernel.manifest import Dom0Manifest, DriverManifest, Heartbeat, Manifest
from kernel.run_folder import RunFolder
from kernel.spawn import Child, Zygotes

__all__ = ["ActorOrder", "DriverDomain", "Guest", "Incarnation", "Machine", "Probe", "Xenstore"]


SOFT_RESETS, SOFT_RESETS_PER_S = 40.0, 10.0
"""Of one incarnation: each makes work for its backends. A reaper forks no more than ten processes in a second."""


HANGS, HANGS_PER_S = 3.0, 1 / 60
"""Of a guest's actors that are replaced: what hangs each of them is the guest's own."""


@dataclass(eq=False, slots=True)
class Incarnation:
    """One living incarnation: its channel at once, its process when the zygote has cloned it. `held`: it is in
    uninterruptible sleep, and can neither answer nor be ended. `stirred`: somebody has wanted something of it since its
    last ping. `stood_until_s`: until then it was stopped; infinite while it is. What it is to hear of its backends is
    `unheard` meanwhile."""

    peer: Peer
    record: DomainRecord
    link: Link
    heartbeat: Heartbeat
    on_gone: Callable[["Incarnation", str], None]
    born_s: float
    child: Child | None = None
    started: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    awaited_pong: int = 0
    ponged: trio.Event = field(default_factory=trio.Event)
    stirred: trio.Event = field(default_factory=trio.Event)
    shutdown: ShutdownReason | None = None
    asked_to_end: ShutdownReason | None = None
    detail: str = ""
    ended_for: str = ""
    held: bool = False
    stood_until_s: float = 0.0
    unheard: Unheard = field(default_factory=Unheard)
    waiting_calls: int = 0
    hangs: Allowance = field(default_factory=lambda: Allowance(HANGS, HANGS_PER_S))
    resets: Allowance = field(default_factory=lambda: Allowance(SOFT_RESETS, SOFT_RESETS_PER_S))

    @property
    def stopped(self) -> bool:
        """Its process stands still: it neither reads nor answers."""
        return self.stood_until_s == math.inf

    def __str__(self) -> str:
        return f"{self.record.name} ({self.peer})"


@dataclass(eq=False, slots=True)
class DriverDomain:
    """A driver (or Dom0, which is kept alive the same way) over all its incarnations. `settled`: it has served, or is a
    driver that was given up before that; nobody need wait for it any longer."""

    record: DomainRecord
    manifest: DriverManifest | Dom0Manifest
    driver: Driver
    obey: Callable[[list[Order]], None]
    last_death: str = ""
    settled: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class ActorOrder:
    """To a guest's actor, until it has said how it went: `why` not, where it could not."""

    done: trio.Event = field(default_factory=trio.Event)
    why: str = ""


@dataclass(eq=False, slots=True)
class Guest:
    """A guest over all its incarnations."""

    record: DomainRecord
    config: GuestConfig
    cpus: tuple[int, ...]
    folder: Path | None = None
    """Of the incarnation, in the reduced jail."""
    incarnation: Incarnation | None = None
    deaths_s: tuple[float, ...] = ()
    reboots_s: tuple[float, ...] = ()
    restarts: int = 0
    last_end: str = ""
    destroying: bool = False
    resetting: bool = False
    reset_over: trio.Event = field(default_factory=trio.Event)
    next_config: GuestConfig | None = None
    """What it is to be made from at its next start, where that was changed."""
    core: Core | None = None
    """Of the incarnation, where it is to leave one at its end."""
    dumping: bool = False
    orders: dict[int, ActorOrder] = field(default_factory=dict)
    last_order: int = 0
    lasting: bool = False
    """It has started once. One that never did is removed with its first incarnation, whatever its `on_*` settings."""
    accusations_s: list[float] = field(default_factory=list)
    pausing: Pausing = field(default_factory=Pausing)
    pause_answered: trio.Event = field(default_factory=trio.Event)
    removed: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class Probe:
    """A backend was asked to look into an image, and has answered or not."""

    asked: Peer
    answered: trio.Event = field(default_factory=trio.Event)
    answer: ImageProbed | None = None


@dataclass(slots=True)
class Xenstore:
    """What is kept of the store, and for its clients, over its incarnations."""

    state: int = -1
    """The memory that is all it knows."""
    serving: Peer | None = None
    """The incarnation that has been told to."""
    introduced: dict[DomId, Peer] = field(default_factory=dict)
    numbers: dict[Peer, int] = field(default_factory=dict)
    """Of each domain's connection."""
    waiting: dict[Peer, int] = field(default_factory=dict)
    """The store's ends of channels that were made while none served."""
    streams: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By the connection's number: the stream, its pipe and its slot (`XenstoreStream`)."""
    last: int = 0

    def next_number(self) -> int:
        """A connection's. None is used again."""
        self.last += 1
        return self.last


@dataclass(slots=True)
class Machine:
    """All of it. Functions in this package act on it; the rules are in `kernel.core`."""

    manifest: Manifest
    run: RunFolder
    log: Log
    nursery: trio.Nursery
    zygotes: Zygotes
    keeper: LogKeeper
    dispatch: Callable[["Machine", Incarnation, Packet], None]
    """Acts on one packet of hypercalls, and takes out of `descriptors` what it keeps."""
    domains: DomainTable = field(default_factory=DomainTable)
    evtchn: EventChannels = field(default_factory=EventChannels)
    grants: GrantTable = field(default_factory=GrantTable)
    vbds: VbdTable = field(default_factory=VbdTable)
    images: dict[VbdHandle, Image] = field(default_factory=dict)
    consoles: dict[Peer, Peer] = field(default_factory=dict)
    """Which incarnation of the console driver a guest's has given its console ring."""
    xenstore: Xenstore = field(default_factory=Xenstore)
    alive: dict[Peer, Incarnation] = field(default_factory=dict)
    drivers: dict[DomId, DriverDomain] = field(default_factory=dict)
    guests: dict[DomId, Guest] = field(default_factory=dict)
    folders: GuestFolders = field(default_factory=GuestFolders)
    probes: dict[int, Probe] = field(default_factory=dict)
    last_probe: int = 0
    stopping: bool = False

    def active(self, driver: DomId) -> Peer | None:
        """The incarnation of a driver that serves now."""
        return self.drivers[driver].driver.active
