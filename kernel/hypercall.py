"""Hypercalls: a packet in, what each message asks for done, one packet of replies out."""

import fcntl
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import trio
from msgspec import Struct

from kernel import consoles, cores, guests, inform, orders, pausing, probing, xenbus, xenstore
from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi import packet
from kernel.abi.codec import Codec, Undecodable, cut
from kernel.abi.guest_config import DomainState
from kernel.abi.ids import ANY_GENERATION, RequestId
from kernel.abi.packet import Packet
from kernel.abi.status import DomainFault, Refused, Status
from kernel.abi.upcalls import (
    EvtchnConnected,
    Misbehave,
    PeerReset,
    Reply,
    ReplyPart,
    ShutdownRequested,
    SoftReset,
)
from kernel.core import privilege
from kernel.core.domains import Kind, Life
from kernel.driver_domains import keep_standby, restart_driver, serves
from kernel.incarnation import OVERSTAYED, end, post, who
from kernel.link import take
from kernel.machine import DriverDomain, Incarnation, Machine
from kernel.version import ABI_VERSION, VERSION

__all__ = ["dispatch"]

MAX_WAITING = 64
"""Calls of one domain that wait for something. Dom0 has one for each administrator that creates or destroys a guest."""

REQUIRED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

MAX_REQUEST = 0xFFFF_FFFF

LEAVE_S = 5.0
"""For a domain to be gone after it has said that it ends."""

_OPERATIONS = {operation.__struct_config__.tag for operation in get_args(h.Hypercall)}

_codec = Codec(h.Hypercall)


class Answer:
    """What a handler gives back: a value, and at most one descriptor, which goes with the reply."""

    __slots__ = ("descriptor", "value")

    def __init__(self, value: Any = None, descriptor: int | None = None) -> None:
        self.value = value
        self.descriptor = descriptor


Handler = Callable[[Machine, Incarnation, Any, list[int]], Answer | Awaitable[Answer]]


def dispatch(machine: Machine, caller: Incarnation, received: Packet) -> None:
    """Act on one packet. Raises DomainFault, and msgspec.DecodeError, for one that breaks the ABI.

    What a call hands out goes with the replies, in their order. Descriptors left over stay in the packet, and are a
    fault.
    """
    replies: list[Reply] = []
    handed_out: list[int] = []
    try:
        for message in _codec.decode(received.data):
            if caller.ended_for:
                break
            reply = _act(machine, caller, message, received.descriptors, handed_out)
            if reply is not None:
                replies.append(reply)
            if len(handed_out) == packet.MAX_DESCRIPTORS:
                _post_replies(machine, caller, replies, handed_out)
        _post_replies(machine, caller, replies, handed_out)
    finally:
        packet.close_all(handed_out)
    if received.descriptors:
        raise DomainFault(caller.peer, "more descriptors than its messages carry", surplus=len(received.descriptors))


def _act(
    machine: Machine, caller: Incarnation, message: Any, descriptors: list[int], handed_out: list[int]
) -> Reply | None:
    """One message, with the descriptors that it carries out of those of its packet."""
    if isinstance(message, Undecodable):
        return _unknown(caller, message)
    riding = take(descriptors, h.DESCRIPTORS.get(type(message), 0))
    try:
        return _perform(machine, caller, message, riding, handed_out)
    finally:
        packet.close_all(riding)


def _post_replies(machine: Machine, caller: Incarnation, replies: list[Reply], handed_out: list[int]) -> None:
    """Post what there is, and forget it: the descriptors are the link's then."""
    if replies:
        descriptors = tuple(handed_out)
        handed_out.clear()
        post(machine, caller, *replies, descriptors=descriptors)
        replies.clear()


def _unknown(caller: Incarnation, message: Undecodable) -> Reply:
    """A call that this hypervisor does not have is refused, since an older one must not end newer domains. Raises
    DomainFault for a call that it has, in a form that it has not."""
    known = message.op is None or message.op in _OPERATIONS
    if known or message.request is None or not 0 <= message.request <= MAX_REQUEST:
        raise DomainFault(caller.peer, "an unreadable message", op=message.op, why=message.why)
    return Reply(RequestId(message.request), Status.ENOSYS, why=f"there is no hypercall {message.op:#x}")


def _perform(
    machine: Machine, caller: Incarnation, call: Any, riding: list[int], handed_out: list[int]
) -> Reply | None:
    """One call. None where there is no reply, or not yet."""
    try:
        privilege.check(caller.record.kind, type(call))
        answer = _HANDLERS[type(call)](machine, caller, call, riding)
        if isinstance(answer, Answer):
            return _reply(call, answer, handed_out)
        if caller.waiting_calls >= MAX_WAITING:
            answer.close()  # type: ignore[attr-defined]
            raise Refused(Status.EAGAIN, f"{MAX_WAITING} calls wait already: wait for one of them")
        caller.waiting_calls += 1
        machine.nursery.start_soon(_answer_later, machine, caller, call, answer)
    except Refused as refusal:
        if not hasattr(call, "request"):
            raise DomainFault(caller.peer, refusal.why) from refusal
        return _refuse(machine, caller, call, refusal)
    return None


def _refuse(machine: Machine, caller: Incarnation, call: Any, refusal: Refused) -> Reply:
    """Log it, as far as this domain's allowance goes, and say so."""
    record = caller.record
    if record.refusals.has(1, trio.current_time()):
        facts = {"call": type(call).__name__, "status": refusal.status.name, "why": refusal.why}
        machine.log.info("hypercall.refused", **who(caller), **facts, unlogged=record.unlogged_refusals)
        record.unlogged_refusals = 0
    else:
        record.unlogged_refusals += 1
    return Reply(call.request, refusal.status, why=refusal.why)


def _reply(call: Any, answer: Answer, handed_out: list[int]) -> Reply | None:
    request: RequestId | None = getattr(call, "request", None)
    if request is None:
        return None
    if answer.descriptor is not None:
        handed_out.append(answer.descriptor)
    return Reply(request, Status.OK, answer.value, descriptors=0 if answer.descriptor is None else 1)


async def _answer_later(machine: Machine, caller: Incarnation, call: Any, answer: Awaitable[Answer]) -> None:
    try:
        value = (await answer).value
        reply = Reply(call.request, Status.OK, value)
    except Refused as refusal:
        reply = _refuse(machine, caller, call, refusal)
    finally:
        caller.waiting_calls -= 1
    if not caller.gone.is_set():
        post(machine, caller, reply)


def _started(machine: Machine, caller: Incarnation, _call: h.Started, _riding: list[int]) -> Answer:
    if caller.started.is_set():
        raise DomainFault(caller.peer, "said Started twice")
    if not caller.ended_for:
        machine.domains.advance(caller.peer, Life.RUNNING)
    caller.started.set()
    machine.log.info("domain.started", **who(caller))
    domain = machine.drivers.get(caller.record.domid)
    if domain is None:
        caller.record.state = DomainState.RUNNING
        machine.guests[caller.record.domid].lasting = True
    elif domain.driver.active == caller.peer:
        serves(machine, domain)
    return Answer()


def _pong(_machine: Machine, caller: Incarnation, call: h.Pong, _riding: list[int]) -> Answer:
    if call.sequence == caller.awaited_pong:
        caller.ponged.set()
    return Answer()


def _pause_done(machine: Machine, caller: Incarnation, call: h.PauseDone, _riding: list[int]) -> Answer:
    if machine.guests[caller.record.domid].config.type == "native":
        raise Refused(Status.EPERM, "a native guest says that it stands still: nobody asked it")
    pausing.answered(machine, caller, call.sequence, call.why)
    return Answer()


def _order_done(machine: Machine, caller: Incarnation, call: h.OrderDone, _riding: list[int]) -> Answer:
    orders.answered(machine.guests[caller.record.domid], call.order, call.why)
    return Answer()


def _image_probed(machine: Machine, caller: Incarnation, call: h.ImageProbed, _riding: list[int]) -> Answer:
    probing.answered(machine, caller, call)
    return Answer()


def _version(machine: Machine, _caller: Incarnation, _call: h.Version, _riding: list[int]) -> Answer:
    return Answer({"version": VERSION, "abi": ABI_VERSION, "run": machine.run.name})


def _sched_shutdown(machine: Machine, caller: Incarnation, call: h.SchedShutdown, _riding: list[int]) -> Answer:
    if caller.shutdown is not None:
        raise Refused(Status.EEXIST, "it has said already that it ends")
    machine.nursery.start_soon(_end_if_it_stays, machine, caller)
    caller.shutdown, caller.detail = call.reason, call.detail
    machine.log.info("domain.shut_down", **who(caller), reason=call.reason.name.lower(), detail=call.detail)
    return Answer()


def _sched_soft_reset(machine: Machine, caller: Incarnation, call: h.SchedSoftReset, _riding: list[int]) -> Answer:
    if not caller.resets.has(1, trio.current_time()):
        raise DomainFault(caller.peer, "its processes die too often")
    machine.log.warning("domain.soft_reset", **who(caller), how=call.how)
    caller.ponged.set()
    shared = machine.evtchn.died(caller.peer)
    packet.close_all(machine.grants.died(caller.peer))
    for other in shared:
        if other in machine.alive:
            post(machine, machine.alive[other], PeerReset(caller.peer))
    post(machine, caller, SoftReset())
    if not caller.started.is_set():
        _started(machine, caller, h.Started(), [])
    xenbus.frontend_reset(machine, caller)
    consoles.frontend_reset(machine, caller)
    pausing.tell_successor(machine, machine.guests[caller.record.domid])
    orders.actor_replaced(machine.guests[caller.record.domid])
    if caller.asked_to_end is not None:
        post(machine, caller, ShutdownRequested(caller.asked_to_end))
    return Answer()


async def _end_if_it_stays(machine: Machine, caller: Incarnation) -> None:
    with trio.move_on_after(LEAVE_S):
        await caller.gone.wait()
        return
    end(machine, caller, OVERSTAYED)


def _evtchn_alloc_unbound(
    machine: Machine, caller: Incarnation, call: h.EvtchnAllocUnbound, _riding: list[int]
) -> Answer:
    if call.remote.generation == ANY_GENERATION:
        machine.domains.find(call.remote.domid)
    else:
        machine.domains.check_alive(call.remote)
    machine.evtchn.alloc_unbound(caller.peer, call.port, call.remote, call.kind)
    return Answer()


def _evtchn_bind(machine: Machine, caller: Incarnation, call: h.EvtchnBindInterdomain, _riding: list[int]) -> Answer:
    machine.domains.check_alive(call.remote)
    bound = machine.evtchn.bind(caller.peer, call.port, call.remote, call.remote_port)
    callers, owners = packet.pair()
    message = EvtchnConnected(bound.owner_port, caller.peer, bound.kind)
    post(machine, machine.alive[bound.owner], message, descriptors=(owners.detach(),))
    return Answer(descriptor=callers.detach())


def _evtchn_close(machine: Machine, caller: Incarnation, call: h.EvtchnClose, _riding: list[int]) -> Answer:
    machine.evtchn.close(caller.peer, call.port)
    return Answer()


def _evtchn_resolve(machine: Machine, caller: Incarnation, call: h.EvtchnResolve, _riding: list[int]) -> Answer:
    return Answer(guests.resolve_peer(machine, caller, call.name))


def _gnttab_grant(machine: Machine, caller: Incarnation, call: h.GnttabGrant, riding: list[int]) -> Answer:
    machine.domains.check_alive(call.to)
    _check_sealed(riding[0])
    machine.grants.grant(caller.peer, call.ref, call.to, call.access, riding[0])
    riding.clear()
    return Answer()


def _check_sealed(descriptor: int) -> None:
    """Only memory that cannot be shrunk under its peer's feet may be granted."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Refused(Status.EINVAL, "a grant is of memory: pass a sealed memfd")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Refused(Status.EINVAL, "a grant is of memory: pass a sealed memfd") from error
    if seals & REQUIRED_SEALS != REQUIRED_SEALS:
        raise Refused(Status.EINVAL, "the memfd is not sealed: add F_SEAL_SHRINK and F_SEAL_GROW")


def _gnttab_map(machine: Machine, caller: Incarnation, call: h.GnttabMap, _riding: list[int]) -> Answer:
    machine.domains.check_alive(call.owner)
    return Answer(descriptor=machine.grants.map(caller.peer, call.owner, call.ref, call.access))


def _gnttab_end(machine: Machine, caller: Incarnation, call: h.GnttabEnd, _riding: list[int]) -> Answer:
    token = machine.grants.end(caller.peer, call.ref)
    packet.close_all([] if token is None else [token])
    return Answer()


def _acting(act: Callable[[Machine, Incarnation, Any], None]) -> Handler:
    def handler(machine: Machine, caller: Incarnation, call: Any, _riding: list[int]) -> Answer:
        act(machine, caller, call)
        return Answer()

    return handler


def _xenstore_connect(machine: Machine, caller: Incarnation, _call: h.XenstoreConnect, _riding: list[int]) -> Answer:
    return Answer(descriptor=xenstore.connect(machine, caller))


async def _domctl_create(machine: Machine, _caller: Incarnation, call: d.DomctlCreate, _riding: list[int]) -> Answer:
    guest = await guests.create(machine, call.config, paused=call.paused)
    return Answer(guest.record.domid)


async def _domctl_destroy(machine: Machine, _caller: Incarnation, call: d.DomctlDestroy, _riding: list[int]) -> Answer:
    await guests.destroy(machine, guests.find_guest(machine, call.domid))
    return Answer()


def _domctl_shutdown(machine: Machine, _caller: Incarnation, call: d.DomctlShutdown, _riding: list[int]) -> Answer:
    guests.request_shutdown(machine, guests.find_guest(machine, call.domid), call.reason)
    return Answer()


def _at_length(machine: Machine, caller: Incarnation, call: Any, value: Any) -> Answer:
    """An answer of any length: what does not fit a packet goes ahead of it."""
    parts = cut(value)
    if not parts:
        return Answer(value)
    post(machine, caller, *(ReplyPart(call.request, part) for part in parts))
    return Answer()


def _domctl_get_info(machine: Machine, caller: Incarnation, call: d.DomctlGetInfo, _riding: list[int]) -> Answer:
    records = list(machine.domains) if call.domid is None else [machine.domains.find(call.domid)]
    infos = [inform.domain_info(machine, record, long=call.long) for record in records]
    return _at_length(machine, caller, call, infos)


async def _domctl_pause(machine: Machine, _caller: Incarnation, call: d.DomctlPause, _riding: list[int]) -> Answer:
    await pausing.pause(machine, guests.find_guest(machine, call.domid))
    return Answer()


async def _domctl_unpause(machine: Machine, _caller: Incarnation, call: d.DomctlUnpause, _riding: list[int]) -> Answer:
    await pausing.unpause(machine, guests.find_guest(machine, call.domid))
    return Answer()


def _domctl_rename(machine: Machine, _caller: Incarnation, call: d.DomctlRename, _riding: list[int]) -> Answer:
    guests.rename(machine, guests.find_guest(machine, call.domid), call.name)
    return Answer()


def _domctl_update_config(
    machine: Machine, _caller: Incarnation, call: d.DomctlUpdateConfig, _riding: list[int]
) -> Answer:
    guests.update_config(machine, guests.find_guest(machine, call.domid), call.config)
    return Answer()


async def _domctl_trigger(machine: Machine, _caller: Incarnation, call: d.DomctlTrigger, _riding: list[int]) -> Answer:
    guest = guests.find_guest(machine, call.domid)
    if call.trigger is d.Trigger.RESET:
        await guests.reset(machine, guest)
    else:
        await orders.press_sysrq(machine, guest, call.key)
    return Answer()


async def _domctl_dump_core(
    machine: Machine, _caller: Incarnation, call: d.DomctlDumpCore, _riding: list[int]
) -> Answer:
    return Answer(await cores.dump(machine, guests.find_guest(machine, call.domid)))


def _sysctl_info(machine: Machine, _caller: Incarnation, _call: d.SysctlInfo, _riding: list[int]) -> Answer:
    return Answer(inform.host_info(machine))


def _sysctl_drivers(machine: Machine, caller: Incarnation, call: d.SysctlDrivers, _riding: list[int]) -> Answer:
    return _at_length(machine, caller, call, inform.driver_infos(machine))


def _sysctl_inject(machine: Machine, _caller: Incarnation, call: d.SysctlInject, _riding: list[int]) -> Answer:
    if not machine.manifest.faults:
        raise Refused(Status.EPERM, "the boot manifest has faults = false: set it to true to let drivers misbehave")
    domain = _find_driver(machine, call.driver)
    if domain.driver.active not in machine.alive:
        raise Refused(Status.ENOENT, f"no driver domain {call.driver!r} is active: tv driver list shows them")
    machine.log.warning(
        "fault.injected", driver=call.driver, peer=str(domain.driver.active), what=call.what, count=call.count
    )
    post(machine, machine.alive[domain.driver.active], Misbehave(call.what, call.count))
    return Answer()


async def _sysctl_restart(machine: Machine, _caller: Incarnation, call: d.SysctlRestart, _riding: list[int]) -> Answer:
    await restart_driver(machine, _find_driver(machine, call.driver))
    return Answer()


async def _sysctl_standby(machine: Machine, _caller: Incarnation, call: d.SysctlStandby, _riding: list[int]) -> Answer:
    await keep_standby(machine, _find_driver(machine, call.driver), call.wanted)
    return Answer()


def _find_driver(machine: Machine, name: str) -> DriverDomain:
    for domain in machine.drivers.values():
        if domain.record.name == name and domain.record.kind is Kind.DRIVER:
            return domain
    raise Refused(Status.ENOENT, f"there is no driver domain {name!r}: tv driver list shows them")


_HANDLERS: dict[type[Struct], Handler] = {
    h.Started: _started,
    h.Pong: _pong,
    h.PauseDone: _pause_done,
    h.OrderDone: _order_done,
    h.Version: _version,
    h.SchedShutdown: _sched_shutdown,
    h.SchedSoftReset: _sched_soft_reset,
    h.EvtchnAllocUnbound: _evtchn_alloc_unbound,
    h.EvtchnBindInterdomain: _evtchn_bind,
    h.EvtchnClose: _evtchn_close,
    h.EvtchnResolve: _evtchn_resolve,
    h.GnttabGrant: _gnttab_grant,
    h.GnttabMap: _gnttab_map,
    h.GnttabEnd: _gnttab_end,
    h.XenbusConnect: _acting(xenbus.connect),
    h.XenbusConnected: _acting(xenbus.connected),
    h.XenbusFault: _acting(xenbus.fault),
    h.XenbusStalled: _acting(xenbus.stalled),
    h.ImageProbed: _image_probed,
    h.ConsoleConnect: _acting(consoles.connect),
    h.ConsoleFault: _acting(consoles.fault),
    h.XenstoreConnect: _xenstore_connect,
    h.XenstoreClosed: _acting(xenstore.closed),
    d.DomctlCreate: _domctl_create,
    d.DomctlDestroy: _domctl_destroy,
    d.DomctlShutdown: _domctl_shutdown,
    d.DomctlGetInfo: _domctl_get_info,
    d.DomctlPause: _domctl_pause,
    d.DomctlUnpause: _domctl_unpause,
    d.DomctlRename: _domctl_rename,
    d.DomctlUpdateConfig: _domctl_update_config,
    d.DomctlTrigger: _domctl_trigger,
    d.DomctlDumpCore: _domctl_dump_core,
    d.SysctlInfo: _sysctl_info,
    d.SysctlDrivers: _sysctl_drivers,
    d.SysctlInject: _sysctl_inject,
    d.SysctlRestart: _sysctl_restart,
    d.SysctlStandby: _sysctl_standby,
}
