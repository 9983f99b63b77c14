"""Bringing each guest's console and the console driver together."""

from kernel.abi.hypercalls import ConsoleConnect, ConsoleFault
from kernel.abi.ids import Peer
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import ConsoleBackend, ConsoleRing
from kernel.incarnation import post
from kernel.machine import DriverDomain, Guest, Incarnation, Machine
from kernel.manifest import Device, DriverManifest
from kernel.xenbus import accuse

__all__ = ["backend_active", "connect", "fault", "frontend_came", "frontend_reset", "frontend_went"]


def backend_active(machine: Machine, domain: DriverDomain, backend: Peer) -> None:
    """An incarnation of a driver serves: where it serves consoles, every guest is told."""
    if _serves_consoles(domain):
        machine.consoles.clear()
        for guest in machine.guests.values():
            if guest.incarnation is not None and not guest.incarnation.ended_for and _has_a_terminal(guest):
                post(machine, guest.incarnation, ConsoleBackend(backend))


def frontend_came(machine: Machine, guest: Incarnation) -> None:
    """A new incarnation of a guest: tell it of the console driver, where one serves."""
    backend = _active(machine)
    if backend is not None and _has_a_terminal(machine.guests[guest.record.domid]):
        post(machine, guest, ConsoleBackend(backend))


def frontend_reset(machine: Machine, guest: Incarnation) -> None:
    """A guest goes on in another process, which has its own ring to make."""
    frontend_went(machine, guest.peer)
    frontend_came(machine, guest)


def frontend_went(machine: Machine, guest: Peer) -> None:
    """An incarnation of a guest is gone. The driver hears of it as of every peer with which it shared a port."""
    machine.consoles.pop(guest, None)


def connect(machine: Machine, caller: Incarnation, call: ConsoleConnect) -> None:
    """`ConsoleConnect`: pass a guest's console ring on to the driver."""
    machine.domains.check_alive(call.backend)
    if call.backend != _active(machine):
        raise Refused(Status.ESTALE, f"{call.backend} does not serve consoles now")
    if machine.consoles.get(caller.peer) == call.backend:
        raise Refused(Status.EEXIST, f"{call.backend} has a console ring of {caller.peer} already")
    machine.consoles[caller.peer] = call.backend
    ring = ConsoleRing(caller.peer, caller.record.name, call.out_ref, call.in_ref, call.port)
    post(machine, machine.alive[call.backend], ring)


def fault(machine: Machine, caller: Incarnation, call: ConsoleFault) -> None:
    """`ConsoleFault`: one end of a console ring says that the other broke its rules."""
    machine.domains.check_alive(call.peer)
    if call.peer not in (machine.consoles.get(caller.peer), *_fronts_of(machine, caller.peer)):
        raise Refused(Status.ENOENT, f"{caller.peer} shares no console ring with {call.peer}")
    accuse(machine, caller, machine.alive[call.peer], call.what, call.evidence, vbd="console")


def _fronts_of(machine: Machine, backend: Peer) -> list[Peer]:
    return [guest for guest, served_by in machine.consoles.items() if served_by == backend]


def _active(machine: Machine) -> Peer | None:
    active = next((d.driver.active for d in machine.drivers.values() if _serves_consoles(d)), None)
    return active if active in machine.alive else None


def _has_a_terminal(guest: Guest) -> bool:
    """A native guest prints, and that is all."""
    return guest.config.type == "pv"


def _serves_consoles(domain: DriverDomain) -> bool:
    return isinstance(domain.manifest, DriverManifest) and domain.manifest.device is Device.CONSOLE
