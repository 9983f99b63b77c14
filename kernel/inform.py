"""What Dom0 is told about domains, drivers and the host."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from kernel.abi.guest_config import MIB, DomainInfo, DomainState, DriverInfo, VbdInfo
from kernel.core.domains import DomainRecord, Kind
from kernel.core.vbds import Vbd
from kernel.machine import Guest, Incarnation, Machine
from kernel.pausing import paused_for, stands
from kernel.version import ABI_VERSION, VERSION

__all__ = ["domain_info", "driver_infos", "host_info", "jail_in_words"]


def domain_info(machine: Machine, record: DomainRecord, *, long: bool = False) -> DomainInfo:
    """One domain; `long`: with what it is made from."""
    incarnation = _current(machine, record)
    child = incarnation.child if incarnation else None
    guest = machine.guests.get(record.domid)
    driver = machine.drivers.get(record.domid)
    return DomainInfo(
        domid=record.domid,
        name=record.name,
        kind=guest.config.type if guest else record.kind.value,
        state=_state(record, incarnation, guest),
        generation=incarnation.peer.generation if incarnation else record.generation,
        pid=child.pid if child else None,
        memory=guest.config.memory if guest else 0,
        vcpus=guest.config.vcpus if guest else 1,
        cpus=list(guest.cpus) if guest else sorted(os.sched_getaffinity(child.pid)) if child else [],
        cpu_time_s=_cpu_time_s(child.pid) if child else 0.0,
        uptime_s=round(trio.current_time() - incarnation.born_s, 3) if incarnation else 0.0,
        jail=child.jail if child else "",
        restarts=guest.restarts if guest else driver.driver.restarts if driver else 0,
        vbds=[_vbd_info(machine, vbd) for vbd in machine.vbds.of_guest(record.domid)],
        paused_for=paused_for(machine, guest) if guest and incarnation else [],
        last_end=guest.last_end if guest else driver.last_death if driver else "",
        config=(guest.next_config or guest.config) if guest and long else None,
    )


def driver_infos(machine: Machine) -> list[DriverInfo]:
    """All driver domains, Dom0 left out."""
    infos = []
    for domid, domain in machine.drivers.items():
        if domain.record.kind is not Kind.DRIVER:
            continue
        active = machine.alive.get(domain.driver.active) if domain.driver.active else None
        standby = machine.alive.get(domain.driver.standby) if domain.driver.standby else None
        infos.append(
            DriverInfo(
                name=domain.record.name,
                domid=domid,
                state=_state(domain.record, active, None),
                generation=active.peer.generation if active else domain.record.generation,
                pid=active.child.pid if active and active.child else None,
                standby_generation=standby.peer.generation if standby else None,
                standby_pid=standby.child.pid if standby and standby.child and standby.started.is_set() else None,
                restarts=domain.driver.restarts,
                last_death=domain.last_death,
                jail=active.child.jail if active and active.child else "",
                vbds=[_vbd_info(machine, vbd) for vbd in machine.vbds.of_driver(domid)],
                device=getattr(domain.manifest, "device", ""),
            )
        )
    return infos


def host_info(machine: Machine) -> dict[str, Any]:
    """Host and hypervisor, with the names that `xl info` has."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES")
    return {
        "host": platform.node(),
        "release": platform.release(),
        "machine": platform.machine(),
        "nr_cpus": len(os.sched_getaffinity(0)),
        "total_memory": pages * page_bytes // MIB,
        "free_memory": free * page_bytes // MIB,
        "triovisor_version": VERSION,
        "abi_version": ABI_VERSION,
        "hypervisor_pid": os.getpid(),
        "run": str(machine.run.path),
        "jail": "reduced" if machine.zygotes.missing else "full",
        "jail_lacks": list(machine.zygotes.missing),
        "domains": sum(1 for _ in machine.domains),
        "faults": machine.manifest.faults,
    }


def _state(record: DomainRecord, incarnation: Incarnation | None, guest: Guest | None) -> DomainState:
    """As it is told: in our tables a domain runs that sleeps uninterruptibly, or stands still."""
    if incarnation is not None and incarnation.held:
        return DomainState.HELD
    return DomainState.PAUSED if guest and incarnation and stands(guest) else record.state


def jail_in_words(missing: Sequence[str]) -> str:
    """The jail that domains have on this host, and what it costs where that is not the full one."""
    if not missing:
        return "jail: full"
    lacks = ", ".join(missing)
    return f"jail: reduced, for this host has no {lacks}: a domain may crash or hang, but must not mean harm"


def _current(machine: Machine, record: DomainRecord) -> Incarnation | None:
    if record.domid in machine.guests:
        return machine.guests[record.domid].incarnation
    active = machine.active(record.domid)
    return machine.alive.get(active) if active else None


def _vbd_info(machine: Machine, vbd: Vbd) -> VbdInfo:
    return VbdInfo(
        handle=vbd.handle,
        vdev=vbd.vdev,
        target=vbd.target,
        access="ro" if vbd.read_only else "rw",
        sectors=vbd.sectors,
        backend=machine.domains[vbd.driver].name,
        guest=machine.domains[vbd.guest].name,
        state=vbd.state(machine.active(vbd.driver)),
    )


def _cpu_time_s(pid: int) -> float:
    """Of a domain's first process and all that it has reaped (proc_pid_stat(5), utime … cstime)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
