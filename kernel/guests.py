"""Guests: made whole or not at all, followed through reboots, taken away without a trace."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import trio
from msgspec.structs import replace

from kernel import consoles, xenstore
from kernel.abi.guest_config import ONLY_FOR, DiskConfig, DomainState, GuestConfig, ShutdownReason
from kernel.abi.ids import Peer
from kernel.abi.packet import close_all
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import ShutdownRequested
from kernel.core.domains import Kind
from kernel.core.endings import Then, follow, free_name
from kernel.cores import open_core
from kernel.events import wait_any
from kernel.guest_bodies import body_of, manifest_of
from kernel.images import Image, open_image
from kernel.incarnation import OVERSTAYED, end, post
from kernel.lifetimes import embody
from kernel.machine import DriverDomain, Guest, Incarnation, Machine
from kernel.manifest import Device, parse_cpus
from kernel.pausing import hold_anew, hold_for_dom0
from kernel.probing import look_into
from kernel.xenbus import frontend_came, frontend_went

__all__ = [
    "create", "destroy", "find_guest", "rename", "request_shutdown", "reset", "resolve_peer", "update_config",
]  # fmt: skip

IMAGE_WAIT_S = 1.0
"""A backend lets go of a destroyed guest's image within milliseconds; a guest created anew on it waits so long."""

MOST_VBDS = {"raw": 1000, "qcow2": 64}
"""Of one driver, by the format that it serves. A vbd takes four of its 8,192 descriptors and one of its 2,048 threads,
and three packets of the 4,096 that wait for an incarnation which is being cloned. One in qcow2 is opened by a process
of its own, which takes some 10 ms of a CPU: a guest whose driver died may wait for those of all the others."""

DRIVER_MIB, VBD_MIB = 256, 13
"""Of a driver's address space: for itself, and for each vbd's ring, of the large kind, and its thread."""

START_DEADLINE_S = 30.0
"""From the order to create a guest to its actor's first word."""


async def create(machine: Machine, config: GuestConfig, *, paused: bool = False) -> Guest:
    """Create and start a guest, to stand still for Dom0 if `paused`. When it refuses, nothing is left behind."""
    guest, incarnation = await _make(machine, config)
    if paused:
        hold_for_dom0(machine, guest)
    await _started(machine, guest, incarnation)
    return guest


async def _make(machine: Machine, config: GuestConfig) -> tuple[Guest, Incarnation]:
    _check(machine, config)
    images: list[Image] = []
    try:
        for disk in config.disk:
            images.append(await _open_disk(machine, disk))
        record = machine.domains.add(config.name, Kind.GUEST)
    except BaseException:
        for image in images:
            image.close()
        raise
    guest = Guest(record, config, _choose_cpus(machine, config))
    machine.guests[record.domid] = guest
    _add_vbds(machine, guest, images)
    machine.log.info("guest.created", name=config.name, type=config.type, memory=config.memory, cpus=guest.cpus)
    try:
        incarnation = _start(machine, guest)
    except Refused:
        _remove(machine, guest)
        raise
    return guest, incarnation


async def _started(machine: Machine, guest: Guest, incarnation: Incarnation) -> None:
    """Wait for the actor's first word, or for the end that came before it."""
    with trio.move_on_after(START_DEADLINE_S):
        await wait_any(incarnation.started, incarnation.gone)
    if not incarnation.started.is_set():
        name = guest.config.name
        how = guest.last_end or f"it said nothing for {START_DEADLINE_S:g} s"
        if not incarnation.gone.is_set():
            end(machine, incarnation, "did not start")
        mend = "" if incarnation.detail else f": its log says more, and tv dmesg {name}"
        raise Refused(Status.EIO, f"guest {name} did not start: {how}{mend}")


def find_guest(machine: Machine, domid: int) -> Guest:
    """A guest that Dom0 named. Refuses what does not exist (ENOENT) and what is no guest (EPERM)."""
    record = machine.domains.find(domid)  # type: ignore[arg-type]
    if record.kind is not Kind.GUEST:
        raise Refused(Status.EPERM, f"{record.name} is a {record.kind.value}, not a guest")
    return machine.guests[record.domid]


async def destroy(machine: Machine, guest: Guest) -> None:
    """End a guest at once and wait until every process of it is gone."""
    guest.destroying = True
    if guest.incarnation is None:
        _remove(machine, guest)
    else:
        end(machine, guest.incarnation, "destroyed")
    await guest.removed.wait()


def request_shutdown(machine: Machine, guest: Guest, reason: ShutdownReason) -> None:
    """Ask a guest's operating system to power off or reboot."""
    if guest.incarnation is None:
        raise Refused(
            Status.EHOSTDOWN,
            f"guest {guest.config.name} is {guest.record.state}: tv destroy {guest.config.name} removes it",
        )
    guest.record.state = DomainState.STOPPING if reason is ShutdownReason.POWEROFF else guest.record.state
    guest.incarnation.asked_to_end = reason
    post(machine, guest.incarnation, ShutdownRequested(reason))


async def reset(machine: Machine, guest: Guest) -> None:
    """Press a guest's reset button: its incarnation ends at once, and another follows whatever its settings say.
    Returns when that runs. Refuses EHOSTDOWN where there is none to end, EIO where none follows."""
    before = guest.incarnation
    if before is None:
        raise Refused(Status.EHOSTDOWN, f"guest {guest.config.name} is {guest.record.state}: there is nothing to reset")
    guest.resetting, guest.reset_over = True, trio.Event()
    end(machine, before, "reset")
    with trio.move_on_after(START_DEADLINE_S):
        await guest.reset_over.wait()
        if guest.incarnation is not None:
            await wait_any(guest.incarnation.started, guest.incarnation.gone)
    if guest.incarnation is None or not guest.incarnation.started.is_set():
        raise Refused(Status.EIO, f"guest {guest.config.name} was ended and does not start: {guest.last_end}")


def rename(machine: Machine, guest: Guest, name: str) -> None:
    """Give a guest another name. Refuses one that is taken (EEXIST)."""
    before = guest.config.name
    if name == before:
        return
    machine.domains.rename(guest.record.domid, name)
    guest.config = replace(guest.config, name=name)
    if guest.next_config is not None:
        guest.next_config = replace(guest.next_config, name=name)
    machine.keeper.rename_console(before, name)
    xenstore.domain_renamed(machine, guest.record.domid)
    machine.log.info("guest.renamed", name=name, before=before)


def update_config(machine: Machine, guest: Guest, config: GuestConfig) -> None:
    """Have it made from this at its next start. Refuses what cannot be, and what would be another guest (EINVAL)."""
    now = guest.config
    for key, mend in _LASTING.items():
        if getattr(config, key) != getattr(now, key):
            raise Refused(Status.EINVAL, f"guest {now.name}: {key} cannot be changed while it lives: {mend}")
    _check_type(config)
    _check_cpus(config)
    guest.next_config = config
    machine.log.info("guest.reconfigured", name=now.name)


_ANEW = "tv destroy, then tv create"
_LASTING = {"name": "tv rename gives it another", "type": _ANEW, "disk": _ANEW}
"""What an update leaves as it is, and what changes it."""


def resolve_peer(machine: Machine, caller: Incarnation, name: str) -> Peer | None:
    """`EvtchnResolve`: the running incarnation of a guest that the caller's configuration names."""
    guest = machine.guests[caller.record.domid]
    if name not in guest.config.peers:
        raise Refused(Status.EPERM, f"{name!r} is no peer of {guest.config.name}: add it to peers in its TOML")
    for other in machine.guests.values():
        if other.config.name == name and other.incarnation is not None and other.incarnation.started.is_set():
            return other.incarnation.peer
    return None


def _check(machine: Machine, config: GuestConfig) -> None:
    _check_type(config)
    vdevs = [disk.vdev for disk in config.disk]
    if len(set(vdevs)) != len(vdevs):
        raise Refused(Status.EINVAL, f"guest {config.name}: two disks share a vdev: give each its own of vda … vdp")
    _check_backends(machine, config)
    _check_cpus(config)


def _check_cpus(config: GuestConfig) -> None:
    for cpu in parse_cpus(config.cpus) if config.cpus else ():
        if cpu not in os.sched_getaffinity(0):
            have = ",".join(map(str, sorted(os.sched_getaffinity(0))))
            raise Refused(Status.EINVAL, f"guest {config.name}: cpus = {config.cpus!r}: this host has {have}")


def _check_type(config: GuestConfig) -> None:
    """Refuse what means nothing for this type of guest, rather than overlook it."""
    for key, kind in ONLY_FOR.items():
        if kind != config.type and getattr(config, key):
            raise Refused(
                Status.EINVAL,
                f"guest {config.name}: {key} is for a guest of type {kind}, this one is {config.type}: leave it out",
            )
    for key in ("on_poweroff", "on_reboot", "on_crash"):
        if config.type == "native" and getattr(config, key).dumps:
            mend = f"{key} may be destroy, restart, rename-restart or preserve"
            raise Refused(Status.EINVAL, f"guest {config.name}: a native one leaves no core: {mend}")
    if config.type == "native" and not config.program:
        raise Refused(Status.EINVAL, f"guest {config.name}: program is missing: give the path of a Python program")


def _check_backends(machine: Machine, config: GuestConfig) -> None:
    """Each disk's driver exists, serves its format, and can serve one more. A guest whose driver is given up would
    stand still before its first instruction."""
    drivers = {domain.record.name: domain for domain in machine.drivers.values()}
    formats = {each.name: each.format for each in machine.manifest.driver if each.device is Device.VBD}
    _check_formats(config, formats)
    for backend, count in Counter(disk.backend for disk in config.disk).items():
        domain = drivers.get(backend)
        if domain is None or backend not in formats:
            known = ", ".join(sorted(formats)) or "none"
            raise Refused(Status.ENOENT, f"guest {config.name}: no driver domain {backend!r}: there are {known}")
        if domain.driver.state is DomainState.GIVEN_UP:
            mend = f"tv driver restart {backend}, then tv create"
            raise Refused(Status.EHOSTDOWN, f"guest {config.name}: driver {backend} is given up: {mend}")
        most = min(MOST_VBDS[formats[backend]], (domain.manifest.address_space - DRIVER_MIB) // VBD_MIB)
        serves = len(machine.vbds.of_driver(domain.record.domid))
        if serves + count > most:
            roomy = most == MOST_VBDS[formats[backend]]
            mend = "name another driver" if roomy else "give it more address_space in the boot manifest"
            why = f"{backend} serves {serves} disks and {most} at most: {mend}"
            raise Refused(Status.ENOSPC, f"guest {config.name}: {why}")


def _check_formats(config: GuestConfig, formats: Mapping[str, str]) -> None:
    """`formats`: that of each driver. One that is not there is for others to miss."""
    for disk in config.disk:
        where = f"guest {config.name}: disk {disk.vdev}"
        if disk.backing is not None and disk.format == "raw":
            mend = 'give format = "qcow2", or leave out backing'
            raise Refused(Status.EINVAL, f"{where}: a raw image stands on no other: {mend}")
        served = formats.get(disk.backend, disk.format)
        if served != disk.format:
            fitting = ", ".join(sorted(name for name, format in formats.items() if format == disk.format))
            mend = f"name {fitting}" if fitting else "have one in the boot manifest"
            raise Refused(Status.EINVAL, f"{where}: {disk.backend} serves {served} and not {disk.format}: {mend}")


async def _open_disk(machine: Machine, disk: DiskConfig) -> Image:
    """Open a disk's image, and what it stands on."""
    image = await _open_image(Path(disk.target), disk.access == "ro")
    if disk.format == "raw":
        return image
    try:
        if not image.is_file:
            why = f"is a block device: an image in {disk.format} is a file"
            raise Refused(Status.EINVAL, f"image {disk.target} {why}")
        await look_into(machine, _driver_named(machine, disk.backend), disk, image)
        if disk.backing is not None:
            image.backing = await _open_image(Path(disk.backing), True)
    except BaseException:
        image.close()
        raise
    return image


def _driver_named(machine: Machine, name: str) -> DriverDomain:
    return next(domain for domain in machine.drivers.values() if domain.record.name == name)


async def _open_image(path: Path, read_only: bool) -> Image:
    """Open an image, waiting a moment for a backend that is about to let go of it."""
    deadline = trio.current_time() + IMAGE_WAIT_S
    while True:
        try:
            return open_image(path, read_only=read_only)
        except Refused as refusal:
            if refusal.status is not Status.EBUSY or trio.current_time() > deadline:
                raise
        await trio.sleep(0.02)


def _add_vbds(machine: Machine, guest: Guest, images: list[Image]) -> None:
    by_name = {domain.record.name: domid for domid, domain in machine.drivers.items()}
    for disk, image in zip(guest.config.disk, images, strict=True):
        vbd = machine.vbds.add(
            vdev=disk.vdev,
            guest=guest.record.domid,
            driver=by_name[disk.backend],
            sectors=image.sectors,
            read_only=image.read_only,
            target=disk.target,
        )
        machine.images[vbd.handle] = image


def _choose_cpus(machine: Machine, config: GuestConfig) -> tuple[int, ...]:
    """All allowed ones for a native guest; for Linux the one with the fewest guests, since User-Mode Linux is two to
    four times faster on one CPU than on two."""
    allowed = parse_cpus(config.cpus) if config.cpus else tuple(sorted(os.sched_getaffinity(0)))
    if config.type == "native":
        return allowed
    load = {cpu: sum(1 for guest in machine.guests.values() if guest.cpus == (cpu,)) for cpu in allowed}
    return (min(allowed, key=lambda cpu: (load[cpu], cpu)),)


def _start(machine: Machine, guest: Guest) -> Incarnation:
    """Begin an incarnation of a guest."""
    folder = _make_folder(machine, guest) if _needs_folder(machine, guest) else {}
    _take_up_config(machine, guest)
    try:
        body = body_of(machine, guest)
        body.descriptors.update(_core_to_leave(machine, guest))
    except Refused:
        close_all(list(folder.values()))
        _remove_folder(machine, guest)
        raise
    body.descriptors.update(folder)
    incarnation = embody(machine, guest.record.domid, body, lambda gone, how: _gone(machine, guest, gone, how))
    guest.incarnation = incarnation
    guest.record.state = DomainState.STARTING
    frontend_came(machine, incarnation)
    consoles.frontend_came(machine, incarnation)
    hold_anew(machine, guest)
    return incarnation


def _take_up_config(machine: Machine, guest: Guest) -> None:
    """What was changed for this start."""
    if guest.next_config is not None:
        guest.config, guest.next_config = guest.next_config, None
        guest.cpus = _choose_cpus(machine, guest.config)


def _core_to_leave(machine: Machine, guest: Guest) -> dict[str, int]:
    """Where its actor is to write a core, as its descriptor `core`, if one of its settings wants that. A full disk is
    no reason not to run."""
    if not any(guest.config.follows(reason).dumps for reason in ShutdownReason):
        return {}
    try:
        guest.core = open_core(machine, guest, guest.record.generation + 1)
    except Refused as refusal:
        machine.log.error("guest.core_failed", name=guest.config.name, why=refusal.why)
        return {}
    return {"core": os.dup(guest.core.descriptor)}


def _needs_folder(machine: Machine, guest: Guest) -> bool:
    """A native guest writes nowhere."""
    return guest.config.type == "pv" and "mount" in machine.zygotes.missing


def _make_folder(machine: Machine, guest: Guest) -> dict[str, int]:
    """Where the guest can write in a jail that has no mounts, as its descriptor `folder`. Refuses ENOSPC."""
    try:
        guest.folder = machine.folders.make()
        return {"folder": os.open(guest.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}
    except OSError as error:
        _remove_folder(machine, guest)
        where = f"{error.filename}: {error.strerror}"
        raise Refused(Status.ENOSPC, f"guest {guest.config.name}: {where}: make room in /dev/shm") from error


def _remove_folder(machine: Machine, guest: Guest) -> None:
    if guest.folder is not None:
        machine.folders.remove(guest.folder)
        guest.folder = None


def _gone(machine: Machine, guest: Guest, incarnation: Incarnation, how: str) -> None:
    """What the guest's `on_*` settings say, now that an incarnation of it has ended."""
    left = incarnation.ended_for in ("", OVERSTAYED)
    reason = incarnation.shutdown if incarnation.shutdown is not None and left else ShutdownReason.CRASH
    guest.incarnation = None
    guest.last_end = how
    _remove_folder(machine, guest)
    frontend_went(machine, guest.record.domid)
    consoles.frontend_went(machine, incarnation.peer)
    machine.log.warning("guest.ended", name=guest.config.name, reason=reason.name.lower(), how=how)
    _keep_core(machine, guest, reason)
    guest.record.state = DomainState.CRASHED if reason is ShutdownReason.CRASH else DomainState.SHUTDOWN
    if guest.destroying or not guest.lasting or machine.stopping:
        _remove(machine, guest)
    elif guest.resetting:
        guest.restarts += 1
        machine.nursery.start_soon(_start_again, machine, guest)
    else:
        _follow(machine, guest, reason)


def _keep_core(machine: Machine, guest: Guest, reason: ShutdownReason) -> None:
    core, guest.core = guest.core, None
    if core is None:
        return
    path = core.keep()
    if path is not None:
        machine.log.info("guest.core_dumped", name=guest.config.name, path=str(path), bytes=path.stat().st_size)
    elif guest.config.follows(reason).dumps and not guest.destroying and not machine.stopping:
        why = "its actor ended before it had written it, or its kernel before it had any memory"
        machine.log.error("guest.core_failed", name=guest.config.name, why=why)


def _follow(machine: Machine, guest: Guest, reason: ShutdownReason) -> None:
    """What the guest's settings say of such an end."""
    policy, now_s = manifest_of(machine, guest.config).restart, trio.current_time()
    is_reboot = reason is ShutdownReason.REBOOT
    ends_s = guest.reboots_s if is_reboot else guest.deaths_s
    following = follow(guest.config.follows(reason), reason, policy, ends_s, now_s)
    if is_reboot:
        guest.reboots_s = following.ends_s
    else:
        guest.deaths_s = following.ends_s
    match following.then:
        case Then.REMOVED:
            _remove(machine, guest)
        case Then.RESTARTED:
            guest.restarts += 1
            machine.nursery.start_soon(_start_later, machine, guest, following.delay_s)
        case Then.RENAMED:
            machine.nursery.start_soon(_replace_later, machine, guest, following.delay_s)
        case Then.GIVEN_UP:
            guest.record.state = DomainState.GIVEN_UP
            machine.log.critical("guest.given_up", name=guest.config.name, deaths=len(following.ends_s))


async def _replace_later(machine: Machine, guest: Guest, delay_s: float) -> None:
    """Keep it under another name, without its disks, and make a guest like it in its place."""
    await trio.sleep(delay_s)
    if guest.destroying or guest.record.domid not in machine.guests or machine.stopping:
        return
    config = guest.next_config or guest.config
    _let_go_of_disks(machine, guest)
    rename(machine, guest, free_name(config.name, guest.record.generation, [each.name for each in machine.domains]))
    guest.next_config = None
    try:
        heir, _ = await _make(machine, config)
    except Refused as refusal:
        machine.log.error("guest.not_restarted", name=config.name, why=refusal.why)
        return
    heir.lasting, heir.restarts = True, guest.restarts + 1
    heir.deaths_s, heir.reboots_s = guest.deaths_s, guest.reboots_s


async def _start_again(machine: Machine, guest: Guest) -> None:
    """After its reset button."""
    await _start_later(machine, guest, 0.0)
    guest.resetting = False
    guest.reset_over.set()


async def _start_later(machine: Machine, guest: Guest, delay_s: float) -> None:
    await trio.sleep(delay_s)
    if guest.destroying or guest.record.domid not in machine.guests:
        return
    try:
        _start(machine, guest)
    except Refused as refusal:
        guest.record.state = DomainState.CRASHED
        machine.log.error("guest.not_restarted", name=guest.config.name, why=refusal.why)


def _remove(machine: Machine, guest: Guest) -> None:
    """Take a guest without an incarnation out of every table."""
    _let_go_of_disks(machine, guest)
    del machine.guests[guest.record.domid]
    machine.domains.remove(guest.record.domid)
    guest.record.state = DomainState.DEAD
    guest.removed.set()
    guest.reset_over.set()


def _let_go_of_disks(machine: Machine, guest: Guest) -> None:
    for vbd in machine.vbds.of_guest(guest.record.domid):
        machine.images.pop(vbd.handle).close()
        machine.vbds.remove(vbd.handle)
