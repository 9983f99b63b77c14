"""Keeping drivers, and Dom0, alive: acting on the orders of `kernel.core.drivers`."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio

from kernel.abi.guest_config import MIB
from kernel.abi.roles import Dom0Start, DriverStart
from kernel.abi.spawn import Jail
from kernel.core.domains import Kind
from kernel.core.drivers import Abandon, Activate, Driver, Order, Spawn, Withdraw
from kernel.lifetimes import Body, embody
from kernel.machine import DriverDomain, Incarnation, Machine
from kernel.manifest import Dom0Manifest, DriverManifest, parse_cpus
from kernel.version import VERSION
from kernel.xenbus import activate_backend, backend_came, backend_went

__all__ = ["start_dom0", "start_driver"]


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
        config = msgspec.msgpack.encode(DriverStart(machine.manifest.faults, manifest.options))
        cpus = parse_cpus(manifest.cpus) if manifest.cpus else ()
        jail = Jail(kind="driver", memory_bytes=manifest.address_space * MIB, cpus=cpus, nofile=8192)
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
    domain = DriverDomain(record, manifest, Driver(manifest.restart, standby))
    machine.drivers[record.domid] = domain
    _Care(machine, domain, body).obey(domain.driver.boot())


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
                    self.machine.log.info(
                        "driver.activated", **self._name(), peer=str(peer), take_published=take_published
                    )
                case Withdraw(peer=peer):
                    backend_went(self.machine, self.domain.record.domid, peer)
                case Abandon(deaths=deaths, window_s=window_s):
                    self.machine.log.critical("driver.given_up", **self._name(), deaths=deaths, window_s=window_s)
        self.domain.record.state = self.domain.driver.state

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
