"""The guest's console, front end: what it writes goes to the log keeper's pipe and to who watches, keys come from
there.

The file is the keeper's, and no driver's business: what a console driver does or suffers is seen by its watchers alone.
"""

import os
import socket
from dataclasses import dataclass

import trio

from domains.frontends.console_ring import ConsoleRing, Size
from domains.frontends.key_ledger import RingBroken
from domains.guests.commands import Commands
from domains.guests.line_room import LineRoom
from domains.runtime.domain import Call, Domain
from domains.runtime.doorbell import Doorbell
from domains.runtime.numbers import Numbers
from kernel.abi.hypercalls import Access, ChannelKind, ConsoleConnect, ConsoleFault, EvtchnAllocUnbound, GnttabGrant
from kernel.abi.ids import Peer
from kernel.abi.io.consif import CHUNK_BYTES
from kernel.abi.status import Refused

__all__ = ["Console"]

REMEMBERED_BYTES = 4096
"""Enough for the kernel's last words, from which it is told how the guest ended."""

HOLD_S = 2.0
"""How long a guest is held up before it overwrites what a watcher has not seen: a driver that hangs is replaced in
less. A watcher that was outrun holds up nobody until he has caught up."""

LOOK_AGAIN_S = (0.002, 0.1)
"""Between two looks whether the guest has read its input: at first, and at most."""

BLIND_S = 1.0
"""Where there never was an agent to look, what was typed so long ago counts as read. One that does not answer just now,
as in a guest that is paused, is waited for."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    out_ref: int
    in_ref: int
    port: int


class Console:
    """One end of the guest's console line, the pipe that keeps what it says, and the ring of who watches it."""

    def __init__(
        self, domain: Domain, nursery: trio.Nursery, commands: Commands, ports: Numbers, refs: Numbers
    ) -> None:
        ours, self.guests_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._line = ours
        self._pipe = domain.descriptors["console"]
        os.set_blocking(self._pipe, False)
        self._domain = domain
        self._nursery = nursery
        self._commands = commands
        self._ports, self._refs = ports, refs
        self._numbers: dict[Peer, _Numbers] = {}
        self._backend: Peer | None = None
        self._doorbell: Doorbell | None = None
        self._rung = trio.Event()
        self._outrun = False
        self._room = LineRoom()
        self._size: Size | None = None
        self.last = b""

    def start(self) -> None:
        """Once the operating system is on its way."""
        self._ring = ConsoleRing()
        self._nursery.start_soon(self._take_slots)

    # ---- what the guest writes ----

    async def relay(self) -> None:
        """Until the guest's end is closed. A keeper that does not keep up holds the guest's console up, and
        nothing else."""
        while data := await self._receive():
            self.last = (self.last + data)[-REMEMBERED_BYTES:]
            await self._keep(data)
            await self._wait_for_watchers(len(data))
            self._ring.write(data)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self._line.recv(CHUNK_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._line)
            except ConnectionResetError:
                return b""

    async def _keep(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._pipe, rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._pipe)
            except BrokenPipeError:
                return

    async def _wait_for_watchers(self, size: int) -> None:
        if self._outrun or not self._ring.would_outrun(size):
            self._outrun = self._outrun and self._ring.would_outrun(size)
            return
        with trio.move_on_after(HOLD_S) as patience:
            while self._ring.would_outrun(size):
                await self._rung.wait()
        self._outrun = patience.cancelled_caught
        if self._outrun:
            self._domain.log.warning("console.outran", unseen=self._ring.unseen())

    # ---- its backends ----

    async def serve_by(self, backend: Peer) -> None:
        """Make slots for a backend and grant it the ring, all in one packet."""
        self._hang_up()
        self._backend = backend
        descriptor = self._ring.renew()
        numbers = self._numbers[backend] = _Numbers(self._refs.take(), self._refs.take(), self._ports.take())
        fields = {"backend": backend, "out_ref": numbers.out_ref, "in_ref": numbers.in_ref, "port": numbers.port}
        calls = [
            Call(GnttabGrant, {"ref": numbers.out_ref, "to": backend, "access": Access.READ}, [self._ring.out_fd]),
            Call(GnttabGrant, {"ref": numbers.in_ref, "to": backend, "access": Access.READ_WRITE}, [descriptor]),
            Call(EvtchnAllocUnbound, {"port": numbers.port, "remote": backend, "kind": ChannelKind.DOORBELL}),
            Call(ConsoleConnect, fields),
        ]
        try:
            await self._domain.call_all(calls)
        except Refused as refusal:
            self._domain.log.info("ring.refused", backend=str(backend), why=refusal.why)
        finally:
            self._ring.granted()

    def connected(self, port: int, descriptor: int) -> bool:
        """The backend has bound its doorbell. False for a port that is no doorbell of ours."""
        of = next((peer for peer, numbers in self._numbers.items() if numbers.port == port), None)
        if of is None:
            return False
        doorbell = socket.socket(fileno=descriptor)
        if of == self._backend:
            self._doorbell = self._ring.attach_doorbell(doorbell)
            self._nursery.start_soon(self._listen, self._doorbell)
        else:
            doorbell.close()
        return True

    def peer_died(self, peer: Peer) -> None:
        """The hypervisor has freed what was granted to it, and its port."""
        numbers = self._numbers.pop(peer, None)
        if numbers is None:
            return
        self._refs.give_back(numbers.out_ref)
        self._refs.give_back(numbers.in_ref)
        self._ports.give_back(numbers.port)
        if peer == self._backend:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._doorbell is not None:
            trio.lowlevel.notify_closing(self._doorbell.fileno())
            self._doorbell = None
            self._ring.hang_up()

    async def _listen(self, doorbell: Doorbell) -> None:
        """Until the backend is gone. Each ring is a reason to look, for whoever waits for something."""
        try:
            while doorbell.drain():
                self._rung.set()
                self._rung = trio.Event()
                await trio.lowlevel.wait_readable(doorbell.fileno())
        except trio.ClosedResourceError:
            return

    # ---- keys ----

    async def _take_slots(self) -> None:
        """For as long as the guest lives. A slot that was begun when its backend died is left: its keys come again."""
        while True:
            backend = self._backend
            slot = None
            try:
                slot = self._ring.next_slot() if self._doorbell is not None else None
            except RingBroken as broken:
                self._hang_up()
                self._nursery.start_soon(self._report, backend, broken)
            if slot is None:
                await self._rung.wait()
                continue
            if isinstance(slot, Size):
                self._resize(slot)
            else:
                await self._type(slot.data, backend)
            if backend == self._backend:
                self._ring.took_slot()
            await trio.lowlevel.checkpoint()

    async def _type(self, keys: bytes, backend: Peer | None) -> None:
        """Until all are in the guest's line, or the backend is another."""
        while keys and backend == self._backend:
            dropped = self._room.cut(keys)
            if dropped:
                self._domain.log.warning("console.line_cut", keys=dropped)
                self._ring.took_keys(dropped)
                keys = keys[dropped:]
                continue
            fitting = self._room.fits(keys)
            if not fitting:
                await self._look(backend)
                continue
            try:
                count = self._line.send(fitting, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._line)
                continue
            except OSError:
                count = len(keys)  # the guest is gone: nobody will read them
            self._room.typed(keys[:count])
            self._ring.took_keys(count)
            keys = keys[count:]

    async def _look(self, backend: Peer | None) -> None:
        """Until the guest has read some of its input, or the backend is another."""
        pause_s, longest_s = LOOK_AGAIN_S
        while backend == self._backend:
            try:
                look = await self._commands.look_at_console()
                self._room.looked(look.unread, look.by_lines)
            except Refused:
                await trio.sleep(BLIND_S)
                if not self._commands.had_agent:
                    self._room.looked(0, False)
            if self._room.room() or self._room.too_long:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def _resize(self, size: Size) -> None:
        begun, self._size = self._size is not None, size
        if not begun:
            self._nursery.start_soon(self._set_size)

    async def _set_size(self) -> None:
        """As soon as there is an agent to do it. Of several sizes that come meanwhile, the last counts."""
        await self._commands.ready()
        size, self._size = self._size, None
        assert size is not None
        try:
            await self._commands.look_at_console(size.rows, size.columns)
        except Refused as refusal:
            self._domain.log.info("console.not_resized", why=refusal.why)

    async def _report(self, backend: Peer | None, broken: RingBroken) -> None:
        self._domain.log.error("ring.faulted", backend=str(backend), what=broken.what, evidence=broken.evidence)
        try:
            await self._domain.call(ConsoleFault, peer=backend, what=broken.what, evidence=broken.evidence)
        except Refused as refusal:
            self._domain.log.info("fault.refused", backend=str(backend), why=refusal.why)
