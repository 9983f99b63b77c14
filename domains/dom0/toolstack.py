"""What an administrator may ask for, done by hypercalls."""

import difflib
from typing import Any, TypeVar

import msgspec
import trio
from msgspec import Struct

from domains.runtime.domain import Domain
from kernel.abi.admin import (
    AdminCreate,
    AdminDestroy,
    AdminDrivers,
    AdminDumpCore,
    AdminInfo,
    AdminInject,
    AdminList,
    AdminListLong,
    AdminPause,
    AdminRename,
    AdminRequest,
    AdminRestart,
    AdminShutdown,
    AdminStandby,
    AdminTrigger,
    AdminUnpause,
    AdminUpdateConfig,
)
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
from kernel.abi.guest_config import DomainInfo, DomainState, DriverInfo, ShutdownReason
from kernel.abi.status import KernelBug, Refused, Status

__all__ = ["Toolstack"]

T = TypeVar("T")

SHUTDOWN_LOOK_S = 0.05
"""Between two looks whether a guest has ended. A guest takes some 0.1 s to power off."""

_ENDED = frozenset({DomainState.SHUTDOWN, DomainState.CRASHED, DomainState.GIVEN_UP, DomainState.DEAD})
_NO_GUESTS = frozenset({"dom0", "driver"})
_ASKED_TO = {ShutdownReason.POWEROFF: "powered off", ShutdownReason.REBOOT: "rebooted"}


class Toolstack:
    """Dom0's use of its privilege. Every refusal is one line that names the thing and the mend."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    async def serve(self, request: AdminRequest) -> Any:
        """Do what is asked, and give the answer's value. Refuses what the hypervisor refuses."""
        match request:
            case AdminList():
                return await self._domains()
            case AdminListLong():
                return (await self._domain.call(DomctlGetInfo, long=True)).value
            case AdminInfo(name=None):
                return (await self._domain.call(SysctlInfo)).value
            case AdminInfo(name=str(name)):
                return await self.find(name)
            case AdminCreate(config=config, paused=paused):
                return (await self._domain.call(DomctlCreate, config=config, paused=paused)).value
            case AdminRename(name=name, new=new):
                return await self._about(name, DomctlRename, name=new)
            case AdminUpdateConfig(name=name, config=config):
                return await self._about(name, DomctlUpdateConfig, config=config)
            case AdminTrigger(name=name, trigger=trigger, key=key):
                return await self._about(name, DomctlTrigger, trigger=trigger, key=key)
            case AdminDumpCore(name=name):
                return await self._about(name, DomctlDumpCore)
            case AdminStandby(driver=driver, wanted=wanted):
                return (await self._domain.call(SysctlStandby, driver=driver, wanted=wanted)).value
            case AdminShutdown():
                return await self._shut_down(request)
            case AdminDestroy(name=name):
                return await self._about(name, DomctlDestroy)
            case AdminPause(name=name):
                return await self._about(name, DomctlPause)
            case AdminUnpause(name=name):
                return await self._about(name, DomctlUnpause)
            case AdminDrivers():
                return (await self._domain.call(SysctlDrivers)).value
            case AdminInject(driver=driver, what=what, count=count):
                return (await self._domain.call(SysctlInject, driver=driver, what=what, count=count)).value
            case AdminRestart(driver=driver):
                return (await self._domain.call(SysctlRestart, driver=driver)).value
        raise KernelBug(f"{type(request).__name__} is not served here")

    async def find(self, name: str) -> DomainInfo:
        """The domain of that name, or of that domid. Refuses ENOENT."""
        domains = await self._domains()
        for domain in domains:
            if domain.name == name:
                return domain
        for domain in domains:
            if str(domain.domid) == name:
                return domain
        near = difflib.get_close_matches(name, [domain.name for domain in domains], 1)
        meant = f", only {near[0]!r}" if near else ""
        raise Refused(Status.ENOENT, f"there is no domain {name!r}{meant}: tv list shows all")

    async def name_of(self, name: str) -> str:
        """That name, or of the domain of that domid. One that is gone has left a console under its name."""
        try:
            return (await self.find(name)).name
        except Refused:
            return name

    async def running_guest(self, name: str) -> DomainInfo:
        """The guest of that name. Refuses as `living_guest`, and EHOSTDOWN where it is paused."""
        guest = await self.living_guest(name)
        if guest.paused_for or guest.state is DomainState.PAUSED:
            raise _paused(guest)
        return guest

    async def living_guest(self, name: str) -> DomainInfo:
        """The guest of that name, paused or not. Refuses ENOENT, EINVAL where it is no guest, EHOSTDOWN where it has
        ended."""
        guest = await self.find(name)
        if guest.kind in _NO_GUESTS:
            raise Refused(Status.EINVAL, f"{name!r} is no guest but a {guest.kind} domain: name a guest of tv list")
        if guest.state in _ENDED:
            raise Refused(Status.EHOSTDOWN, f"guest {name} is {guest.state}: tv destroy {name}, then tv create")
        return guest

    async def guest_with_agent(self, name: str) -> DomainInfo:
        """The guest of that name, if it is one that runs commands and is not paused. Refuses a native one (EINVAL)."""
        return _with_linux(await self.running_guest(name))

    async def guest_with_console(self, name: str) -> DomainInfo:
        """The guest of that name, if it is one to type at, paused or not. Refuses a native one (EINVAL)."""
        return _with_linux(await self.living_guest(name))

    async def console_driver(self) -> DriverInfo:
        """The driver domain that serves consoles. Refuses ENOENT."""
        drivers = _convert((await self._domain.call(SysctlDrivers)).value, list[DriverInfo])
        driver = next((driver for driver in drivers if driver.device == "console"), None)
        if driver is None:
            raise Refused(
                Status.ENOENT, 'no driver serves consoles: the boot manifest has none with device = "console"'
            )
        return driver

    async def _domains(self) -> list[DomainInfo]:
        return _infos((await self._domain.call(DomctlGetInfo)).value)

    async def _about(self, guest: str, operation: type[Struct], **fields: Any) -> Any:
        domain = await self.find(guest)
        return (await self._domain.call(operation, domid=domain.domid, **fields)).value

    async def _shut_down(self, request: AdminShutdown) -> None:
        if request.reason not in _ASKED_TO:
            raise Refused(Status.EINVAL, f"a guest cannot be asked for {request.reason.name}: POWEROFF or REBOOT")
        guest = await self.running_guest(request.name)
        await self._domain.call(DomctlShutdown, domid=guest.domid, reason=request.reason)
        if not request.wait_s:
            return
        with trio.move_on_after(request.wait_s):
            await self._end_of(guest, request.reason)
            return
        raise Refused(
            Status.ETIMEDOUT,
            f"guest {guest.name} has not {_ASKED_TO[request.reason]} within {request.wait_s:g} s: "
            f"tv dmesg {guest.name} shows what it does, tv destroy {guest.name} ends it",
        )

    async def _end_of(self, guest: DomainInfo, reason: ShutdownReason) -> None:
        looks = 0
        while True:
            looks = looks + 1 if await self._has_ended(guest, reason) else 0
            # A guest that is to be restarted is seen as shut down for a moment.
            if looks > (reason is ShutdownReason.REBOOT):
                return
            await trio.sleep(SHUTDOWN_LOOK_S)

    async def _has_ended(self, guest: DomainInfo, reason: ShutdownReason) -> bool:
        """That incarnation has ended; after a reboot also that its successor runs, where it has one."""
        try:
            (now,) = _infos((await self._domain.call(DomctlGetInfo, domid=guest.domid)).value)
        except Refused as refusal:
            if refusal.status is Status.ENOENT:
                return True
            raise
        if now.state is DomainState.PAUSED:
            raise _paused(now)
        if now.state is DomainState.CRASHED:
            raise Refused(Status.EIO, f"guest {guest.name} crashed instead: tv dmesg {guest.name} shows how")
        if now.generation == guest.generation:
            return now.state in _ENDED
        return reason is not ShutdownReason.REBOOT or now.state is not DomainState.STARTING


def _with_linux(guest: DomainInfo) -> DomainInfo:
    if guest.kind == "native":
        name, what = guest.name, "a native one, a Python program with no terminal and no agent"
        raise Refused(Status.EINVAL, f"guest {name} is {what}: tv dmesg {name} shows what it prints")
    return guest


def _paused(guest: DomainInfo) -> Refused:
    """Nothing can be asked of a guest that stands still: why it does, and what lets it go on."""
    drivers = [name for name in guest.paused_for if name != "dom0"]
    mends = [] if drivers and len(drivers) == len(guest.paused_for) else [f"tv unpause {guest.name}"]
    mends += [f"tv driver restart {driver}" for driver in drivers]
    given_up = f", and {', '.join(drivers)} given up" if drivers else ""
    return Refused(Status.EHOSTDOWN, f"guest {guest.name} is paused{given_up}: {'; '.join(mends)}")


def _infos(value: Any) -> list[DomainInfo]:
    return _convert(value, list[DomainInfo])


def _convert(value: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise KernelBug(f"the hypervisor answered with something else: {error}") from error
