"""Keeping drivers, and Dom0, alive: acting on the orders of `kernel.core.drivers`."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio

from kernel import consoles, xenstore
from kernel.abi.guest_config import MIB, DomainState
from kernel.abi.ids import DOM0
from kernel.abi.roles import Dom0Start, DriverStart
from kernel.abi.spawn import Jail, JailKind
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import NAMED_GUESTS, DriverGivenUp
from kernel.boot_files import drivers_program
from kernel.core.domains import Kind
from kernel.core.drivers import Abandon, Activate, Driver, End, Order, Spawn, Withdraw
from kernel.incarnation import end, post
from kernel.lifetimes import Body, embody
from kernel.machine import DriverDomain, Incarnation, Machine
from kernel.manifest import Device, Dom0Manifest, DriverManifest, parse_cpus
from kernel.pausing import hold_all, release_all
from kernel.version import VERSION
from kernel.xenbus import activate_backend, backend_came, backend_went

__all__ = ["keep_standby", "restart_driver", "serves", "start_dom0", "start_driver"]

RESTART_S = 10.0
"""For another incarnation to serve. Where a back-off is under way, it is waited for."""

RESTART_LOOK_S = 0.02
"""Between two looks whether it does: it takes some milliseconds with a standby, some ten without."""

DRIVER_THREADS = 2048
"""A block driver has one for each vbd that flushes, and may have a thousand vbds."""


def start_dom0(machine: Machine, manifest: Dom0Manifest) -> None:
    """Start Dom0. Each of its incarnations has its own channel to the log keeper: no answer to one reaches another."""

    def body() -> Body:
        config = msgspec.msgpack.encode(Dom0Start(machine.run.name, VERSION))
        jail = Jail(kind="dom0", memory_bytes=manifest.address_space * MIB, nofile=1024)
        return Body(manifest.role, jail, config, {"keeper": machine.keeper.open_tails()}, manifest.heartbeat)

    _start(machine, "dom0", Kind.DOM0, manifest, body, standby=False)


def start_driver(machine: Machine, manifest: DriverManifest) -> None:
    """Start a driver domain and, where the manifest wants one, its standby."""

    def body() -> Body:
        program = drivers_program(manifest.program)
        config = msgspec.msgpack.encode(DriverStart(machine.manifest.faults, manifest.options, program))
        cpus = parse_cpus(manifest.cpus) if manifest.cpus else ()
        memory_bytes = manifest.address_space * MIB
        kind: JailKind = "storage" if program else "driver"
        jail = Jail(kind=kind, memory_bytes=memory_bytes, cpus=cpus, nofile=8192, nproc=DRIVER_THREADS)
        return Body(manifest.role, jail, config, {}, manifest.heartbeat)

    _start(machine, manifest.name, Kind.DRIVER, manifest, body, standby=manifest.standby)


def _start(
    machine: Machine,
    name: str,
    kind: Kind,
    manifest: DriverManifest | Dom0Manifest,
    body: Callable[[], Body],
    *,
    standby: bool,
) -> None:
    record = machine.domains.add(name, kind)
    driver = Driver(manifest.restart, standby)
    domain = DriverDomain(record, manifest, driver, lambda orders: care.obey(orders))
    care = _Care(machine, domain, body)
    machine.drivers[record.domid] = domain
    care.obey(driver.boot())


def serves(machine: Machine, domain: DriverDomain) -> None:
    """The active incarnation's own code runs. Guests that stood still for want of it go on."""
    domain.settled.set()
    release_all(machine, domain.record.domid)


async def restart_driver(machine: Machine, domain: DriverDomain) -> None:
    """Replace the incarnation that serves, or start a driver that was given up. Returns when another serves.

    Refuses EIO where it is given up again, ETIMEDOUT where none serves in time.
    """
    driver, name = domain.driver, domain.record.name
    before = driver.active
    machine.log.info("driver.restarted", name=name, peer=str(before) if before else "", state=driver.state.value)
    domain.obey(driver.restart())
    with trio.move_on_after(RESTART_S):
        while driver.state is not DomainState.GIVEN_UP:
            if driver.active not in (None, before) and machine.alive[driver.active].started.is_set():
                return
            await trio.sleep(RESTART_LOOK_S)
        raise Refused(Status.EIO, f"driver {name} is given up again ({domain.last_death}): see its log")
    held = before is not None and before in machine.alive and machine.alive[before].held
    why = "its incarnation is in uninterruptible sleep and cannot be ended" if held else "see its log"
    raise Refused(Status.ETIMEDOUT, f"driver {name}: no other incarnation serves after {RESTART_S:g} s: {why}")


async def keep_standby(machine: Machine, domain: DriverDomain, wanted: bool) -> None:
    """Keep a standby of a driver from now on, or none. Returns when one runs, or the last has ended.

    Refuses EINVAL for a driver that can have none, EIO for one that is given up, ETIMEDOUT where it takes too long.
    """
    driver, name = domain.driver, domain.record.name
    if wanted and getattr(domain.manifest, "device", None) is not Device.VBD:
        raise Refused(Status.EINVAL, f"driver {name} has no standby: what it carries waits for its successor")
    if driver.state is DomainState.GIVEN_UP:
        raise Refused(Status.EIO, f"driver {name} is given up: tv driver restart {name}")
    machine.log.info("driver.standby_wanted", name=name, wanted=wanted)
    domain.obey(driver.keep_standby(wanted))
    with trio.move_on_after(RESTART_S):
        while True:
            if wanted == _stands_by(machine, driver):
                return
            await trio.sleep(RESTART_LOOK_S)
    raise Refused(Status.ETIMEDOUT, f"driver {name}: not so after {RESTART_S:g} s: tv driver list shows how it is")


def _stands_by(machine: Machine, driver: Driver) -> bool:
    return driver.standby in machine.alive and machine.alive[driver.standby].started.is_set()


@dataclass(frozen=True, slots=True)
class _Care:
    """What is done for one driver domain for as long as the hypervisor runs."""

    machine: Machine
    domain: DriverDomain
    body: Callable[[], Body]

    def obey(self, orders: list[Order]) -> None:
        """Act on orders, in order. They may lead to further ones."""
        for order in orders:
            match order:
                case Spawn(delay_s=0):
                    self._clone()
                case Spawn(delay_s=delay_s, gives_way=gives_way):
                    if not gives_way:
                        self.machine.log.warning("driver.backing_off", **self._name(), delay_s=delay_s)
                    self.machine.nursery.start_soon(self._clone_later, delay_s)
                case Activate(peer=peer, take_published=take_published):
                    activate_backend(self.machine, order)
                    if self.machine.alive[peer].started.is_set():
                        serves(self.machine, self.domain)
                    consoles.backend_active(self.machine, self.domain, peer)
                    xenstore.backend_active(self.machine, self.domain, peer)
                    self.machine.log.info(
                        "driver.activated", **self._name(), peer=str(peer), take_published=take_published
                    )
                case Withdraw(peer=peer):
                    backend_went(self.machine, self.domain.record.domid, peer)
                case Abandon():
                    self._give_up(order)
                case End(peer=peer):
                    end(self.machine, self.machine.alive[peer], "ended by the administrator")
        self.domain.record.state = self.domain.driver.state

    def _give_up(self, order: Abandon) -> None:
        """Guests that have a disk of it are paused, not broken; Dom0 is told, and the log."""
        machine, name = self.machine, self.domain.record.name
        guests = hold_all(machine, self.domain.record.domid)[:NAMED_GUESTS]
        machine.log.critical(
            "driver.given_up", **self._name(), deaths=order.deaths, window_s=order.window_s, guests=guests
        )
        if self.domain.record.kind is Kind.DRIVER:
            self.domain.settled.set()
        dom0 = machine.active(DOM0)
        if dom0 in machine.alive:
            post(machine, machine.alive[dom0], DriverGivenUp(name, order.deaths, tuple(guests)))

    async def _clone_later(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self._clone()

    def _clone(self) -> None:
        if self.machine.stopping:
            return
        incarnation = embody(self.machine, self.domain.record.domid, self.body(), self._gone)
        backend_came(self.machine, incarnation)
        self.obey(self.domain.driver.cloned(incarnation.peer))

    def _gone(self, incarnation: Incarnation, how: str) -> None:
        self.domain.last_death = how
        self.obey(self.domain.driver.died(incarnation.peer, trio.current_time()))

    def _name(self) -> dict[str, object]:
        return {"name": self.domain.record.name}
