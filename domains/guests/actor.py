"""A guest's actor: front ends of its devices, its console, its agent, and the start and end of its operating system."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import trio

from domains.frontends.backing import size_of_rings
from domains.frontends.console_ring import ConsoleRing
from domains.guests.commands import Commands
from domains.guests.console import Console
from domains.guests.core_dump import SystemMemory, wait_for_memory
from domains.guests.disks import Disks
from domains.guests.mconsole import Mconsole
from domains.guests.notes import Notes
from domains.guests.reaper import (
    AGENT_FD,
    CONSOLE_FD,
    RAMDISK_FD,
    OsEnded,
    OsStart,
    Succeeds,
    decode,
    encode_start,
    run_folder,
)
from domains.guests.standing import Standing
from domains.guests.uml import ExitReason, GuestExit, UmlDisk, UmlSpec, classify_exit, command_line
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from domains.runtime.numbers import Numbers
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.guest_io import AGENT_PORT
from kernel.abi.hypercalls import ChannelKind, EvtchnAllocUnbound, OrderDone, PauseDone, SchedShutdown
from kernel.abi.ids import ANY_GENERATION, DOM0, Peer
from kernel.abi.io.ring import Sealed
from kernel.abi.packet import close_all
from kernel.abi.roles import GuestStart
from kernel.abi.status import DomainFault, Refused, Status
from kernel.abi.upcalls import (
    BackendActive,
    BackendOffered,
    BackendWithdrawn,
    ConsoleBackend,
    CoreRequested,
    EvtchnConnected,
    PauseRequested,
    PeerDied,
    ShutdownRequested,
    SysrqRequested,
)

__all__ = ["Actor"]

UMID = "guest"

LAST_WORDS_S = 0.5
"""For the console to give what the kernel wrote before it ended. A helper that lives on may hold the line open."""

SYSRQ_S = 5.0
"""For a kernel to hear a key."""

MEMORY_S = 5.0
"""For a kernel that was started to have its memory."""

LIVES_TOLD_APART, NUMBERS_OF_ONE = 60, 1024
"""An actor's ports and grants have other numbers than its predecessor's: a backend may be about to map one of those."""

EXIT_GUEST_FAULT = 65
"""EX_DATAERR of sysexits.h."""

REASONS = {
    ExitReason.POWEROFF: ShutdownReason.POWEROFF,
    ExitReason.REBOOT: ShutdownReason.REBOOT,
}
"""Any other end is a crash."""


class Actor:
    """One incarnation of a guest, or what goes on in place of an actor that died."""

    def __init__(self, domain: Domain, nursery: trio.Nursery, start: GuestStart, console_out: Sealed) -> None:
        """`console_out`: the memory of the console's ring, which each actor of a guest has."""
        self._domain = domain
        self._nursery = nursery
        self._start = start
        self._reaper = Channel(domain.descriptors["reaper"])
        notes = Notes(domain.descriptors["notes"])
        first = domain.life % LIVES_TOLD_APART * NUMBERS_OF_ONE
        ports, refs = Numbers(first=first + AGENT_PORT + 1), Numbers(first=first + 1)
        self._commands = Commands(domain, nursery, domain.descriptors["agent-line"], ports, notes)
        self._console = Console(domain, nursery, self._commands, notes, ConsoleRing(console_out), ports, refs)
        ring_bytes = size_of_rings(start.config.memory, len(start.vbds))
        run = run_folder(start)
        self._disks = Disks(domain, nursery, start.vbds, ring_bytes, ports, refs, self._broke_the_rules, run)
        self._uml_dir = f"{run}/uml"
        mconsole = Mconsole(f"{self._uml_dir}/{UMID}/mconsole", f"{self._uml_dir}/own.{domain.life}.")
        self._standing = Standing(mconsole)
        self._mconsole = mconsole
        self._memory: SystemMemory | None = None

    async def beat(self) -> None:
        """Return once the block loop has turned."""
        await self._disks.beat()

    async def run(self) -> None:
        """From the first upcall to the guest's end, which the hypervisor is told."""
        _leave_cpu(self._start.cpu)
        self._nursery.start_soon(self._take_upcalls)
        self._disks.start()
        self._console.start()
        failed = await self._begin()
        self._nursery.start_soon(self._commands.serve)
        if "core" in self._domain.descriptors:
            self._nursery.start_soon(self._hold_memory)
        exit_ = failed or await self._follow_system()
        reason = REASONS.get(exit_.reason, ShutdownReason.CRASH)
        await self._leave_core(reason)
        await self._say_end(reason, exit_.detail)

    async def _begin(self) -> GuestExit | None:
        """Take up a new guest, or one whose actor died. Its end, if it cannot be."""
        if not self._domain.life:
            failed = await self._order_system()
            await self._open_agent_port()
            await self._domain.started()
            return failed
        was = decode((await self._reaper.receive()).data)
        assert isinstance(was, Succeeds)
        await self._open_agent_port()
        self._domain.log.warning("actor.died", how=was.how)
        self._domain.log.info("actor.started", number=self._domain.life)
        return None if was.system_started else await self._order_system()

    async def _hold_memory(self) -> None:
        """A core is to be left: keep the memory, which the operating system would take along."""
        self._memory = await wait_for_memory()

    async def _leave_core(self, reason: ShutdownReason) -> None:
        if self._memory is None or not self._start.config.follows(reason).dumps:
            return
        try:
            await self._memory.write_core(self._domain.descriptors["core"], self._domain.log)
        except Refused as refusal:
            self._domain.log.error("core.failed", why=refusal.why)

    async def _say_end(self, reason: ShutdownReason, detail: str) -> None:
        """Once, though a predecessor may have said it."""
        try:
            await self._domain.call(SchedShutdown, reason=reason, detail=detail[:512])
        except Refused as refusal:
            self._domain.log.info("shutdown.refused", why=refusal.why)

    async def _order_system(self) -> GuestExit | None:
        """Start the operating system, first of all: it boots while the rest is made ready. Its end, if it cannot be."""
        try:
            argv = command_line(self._spec())
        except Refused as refusal:
            return GuestExit(ExitReason.FAILED_EARLY, 0, refusal.why)
        os.makedirs(self._uml_dir, exist_ok=True)
        await self._reaper.send(encode_start(OsStart(argv, self._start.cpu)))
        return None

    async def _follow_system(self) -> GuestExit:
        """Carry its console and wait for its end."""
        finished = trio.Event()

        async def relay() -> None:
            await self._console.relay()
            finished.set()

        self._nursery.start_soon(relay)
        data, _ = await self._reaper.receive()
        ended = decode(data)
        assert isinstance(ended, OsEnded)
        with trio.move_on_after(LAST_WORDS_S):
            await finished.wait()
        return classify_exit(ended.status, self._console.last)

    def _spec(self) -> UmlSpec:
        config = self._start.config
        return UmlSpec(
            memory_mib=config.memory,
            initrd=f"/proc/self/fd/{RAMDISK_FD}",
            console_fd=CONSOLE_FD,
            agent_fd=AGENT_FD,
            uml_dir=self._uml_dir,
            umid=UMID,
            hostname=config.name,
            root=config.root or "",
            lpj=self._start.lpj,
            disks=tuple(UmlDisk(path, index) for index, path in enumerate(self._disks.paths)),
            extra=tuple(config.extra.split()),
        )

    async def _open_agent_port(self) -> None:
        """Let Dom0, whichever incarnation it has, reach the agent."""
        remote = Peer(DOM0, ANY_GENERATION)
        await self._domain.call(EvtchnAllocUnbound, port=AGENT_PORT, remote=remote, kind=ChannelKind.MESSAGE)

    async def _take_upcalls(self) -> None:
        async for message, descriptors in self._domain.upcalls:
            try:
                await self._take(message, descriptors)
            finally:
                close_all(descriptors)

    async def _take(self, message: object, descriptors: list[int]) -> None:
        match message:
            case BackendOffered():
                await self._disks.xenbus.offered(message)
            case BackendActive():
                self._disks.xenbus.active(message)
            case BackendWithdrawn():
                self._disks.xenbus.withdrawn(message)
            case EvtchnConnected(port=port, peer=peer) if port == AGENT_PORT:
                self._commands.take_orders_from(descriptors.pop(0), peer)
            case EvtchnConnected(port=port):
                bells = (self._disks.xenbus.connected, self._console.connected)
                if any(connected(port, descriptors[0]) for connected in bells):
                    descriptors.pop(0)
            case PeerDied(peer=peer) if peer.domid == DOM0:
                await self._open_agent_port()
            case PeerDied(peer=peer):
                self._console.peer_died(peer)
            case ConsoleBackend(backend=backend):
                await self._console.serve_by(backend)
            case ShutdownRequested(reason=reason):
                self._commands.shut_down(reason)
            case SysrqRequested(order=order, key=key):
                self._nursery.start_soon(self._carry_out, order, partial(self._press_sysrq, key))
            case CoreRequested(order=order):
                self._nursery.start_soon(self._carry_out, order, partial(self._write_core, descriptors.pop()))
            case PauseRequested():
                self._nursery.start_soon(self._pause, message)

    async def _carry_out(self, order: int, act: Callable[[], Awaitable[None]]) -> None:
        why = ""
        try:
            await act()
        except Refused as refusal:
            why = refusal.why
        await self._domain.say(OrderDone(order, why[:512]))

    async def _press_sysrq(self, key: str) -> None:
        try:
            with trio.fail_after(SYSRQ_S):
                said = await self._mconsole.ask(f"sysrq {key}")
        except (DomainFault, OSError, trio.TooSlowError) as error:
            raise Refused(Status.EIO, f"its kernel cannot be told a key: {error or 'it does not answer'}") from error
        if said.error:
            raise Refused(Status.EIO, f"its kernel was told SysRq {key} and says {said.text[:80]!r}")

    async def _write_core(self, core: int) -> None:
        try:
            with trio.move_on_after(MEMORY_S) as waiting:
                memory = await wait_for_memory()
            if waiting.cancelled_caught:
                raise Refused(Status.EIO, f"its kernel has no memory after {MEMORY_S:g} s: has it ended?")
            with memory:
                await memory.write_core(core, self._domain.log)
        finally:
            close_all([core])

    async def _pause(self, wish: PauseRequested) -> None:
        why = ""
        self._disks.loop.rest(wish.paused)
        try:
            await (self._standing.pause() if wish.paused else self._standing.unpause())
        except Refused as refusal:
            why = refusal.why
            self._disks.loop.rest(False)
        await self._domain.say(PauseDone(wish.sequence, why[:512]))

    def _broke_the_rules(self, what: str) -> None:
        """The guest's kernel broke a device's rules: its disk is gone, and a system without its disk is a crash."""
        self._domain.log.error("guest.faulted", what=what)
        self._nursery.start_soon(self._crash, what)

    async def _crash(self, what: str) -> NoReturn:
        await self._say_end(ShutdownReason.CRASH, what)
        os._exit(EXIT_GUEST_FAULT)


def _leave_cpu(cpu: int) -> None:
    """Leave the operating system's CPU to it, where there is another."""
    others = os.sched_getaffinity(0) - {cpu}
    if others:
        os.sched_setaffinity(0, others)
