"""Who may make which hypercall: the one table."""

from msgspec import Struct

from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi.status import Refused, Status
from kernel.core.domains import Kind

__all__ = ["ALLOWED", "check"]

_EVERYBODY = frozenset(Kind)
_DOM0 = frozenset({Kind.DOM0})

ALLOWED: dict[type[Struct], frozenset[Kind]] = {
    h.Started: _EVERYBODY,
    h.Pong: _EVERYBODY,
    h.PauseDone: frozenset({Kind.GUEST}),
    h.OrderDone: frozenset({Kind.GUEST}),
    h.Version: _EVERYBODY,
    h.SchedShutdown: _EVERYBODY,
    h.SchedSoftReset: frozenset({Kind.GUEST}),
    h.EvtchnAllocUnbound: _EVERYBODY,
    h.EvtchnBindInterdomain: _EVERYBODY,
    h.EvtchnClose: _EVERYBODY,
    h.EvtchnResolve: frozenset({Kind.GUEST}),
    h.GnttabGrant: _EVERYBODY,
    h.GnttabMap: _EVERYBODY,
    h.GnttabEnd: _EVERYBODY,
    h.XenbusConnect: frozenset({Kind.GUEST}),
    h.XenbusConnected: frozenset({Kind.DRIVER}),
    h.XenbusFault: frozenset({Kind.GUEST, Kind.DRIVER}),
    h.ConsoleConnect: frozenset({Kind.GUEST}),
    h.ConsoleFault: frozenset({Kind.GUEST, Kind.DRIVER}),
    h.XenbusStalled: frozenset({Kind.GUEST}),
    h.ImageProbed: frozenset({Kind.DRIVER}),
    h.XenstoreConnect: _EVERYBODY,
    h.XenstoreClosed: frozenset({Kind.DRIVER}),
    d.DomctlCreate: _DOM0,
    d.DomctlDestroy: _DOM0,
    d.DomctlShutdown: _DOM0,
    d.DomctlGetInfo: _DOM0,
    d.DomctlPause: _DOM0,
    d.DomctlUnpause: _DOM0,
    d.DomctlRename: _DOM0,
    d.DomctlUpdateConfig: _DOM0,
    d.DomctlTrigger: _DOM0,
    d.DomctlDumpCore: _DOM0,
    d.SysctlInfo: _DOM0,
    d.SysctlDrivers: _DOM0,
    d.SysctlInject: _DOM0,
    d.SysctlRestart: _DOM0,
    d.SysctlStandby: _DOM0,
}


def check(kind: Kind, operation: type[Struct]) -> None:
    """Refuse (EPERM) a hypercall that a domain of this kind may not make."""
    if kind not in ALLOWED[operation]:
        raise Refused(Status.EPERM, f"{operation.__name__} is not for a {kind.value}")
