"""The guest's console, front end: what it writes goes to the log keeper's pipe and to who watches, keys come from
there.

The file is the keeper's, and no driver's business: what a console driver does or suffers is seen by its watchers alone.
Whatever instant this process is killed at, its successor finds each byte and each key in one place, and goes on there.
"""

import os
import socket
from dataclasses import dataclass

import trio

from domains.frontends.console_ring import ConsoleRing, Size
from domains.frontends.key_ledger import RingBroken
from domains.guests.commands import Commands
from domains.guests.line_room import LineRoom
from domains.guests.notes import Note, Notes
from domains.guests.sluice import Sluice
from domains.runtime.domain import Call, Domain
from domains.runtime.doorbell import Doorbell
from domains.runtime.numbers import Numbers
from kernel.abi.hypercalls import Access, ChannelKind, ConsoleConnect, ConsoleFault, EvtchnAllocUnbound, GnttabGrant
from kernel.abi.ids import Peer
from kernel.abi.io.consif import CHUNK_BYTES, SEEN, WATCHERS, WRITER
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


WATCH = {SEEN: Note.SEEN, WATCHERS: Note.WATCHERS, WRITER: Note.WRITER}


@dataclass(frozen=True, slots=True)
class _Numbers:
    out_ref: int
    in_ref: int
    port: int


class Console:
    """One end of the guest's console line, the pipe that keeps what it says, and the ring of who watches it."""

    def __init__(
        self,
        domain: Domain,
        nursery: trio.Nursery,
        commands: Commands,
        notes: Notes,
        ring: ConsoleRing,
        ports: Numbers,
        refs: Numbers,
    ) -> None:
        self._line = socket.socket(fileno=domain.descriptors["console-line"])
        self._line.setblocking(False)
        self._pipe = domain.descriptors["console"]
        os.set_blocking(self._pipe, False)
        self._said = Sluice(domain.descriptors["said.read"], domain.descriptors["said.write"])
        self._typed = Sluice(domain.descriptors["typed.read"], domain.descriptors["typed.write"])
        self._domain = domain
        self._nursery = nursery
        self._commands = commands
        self._notes = notes
        self._ring = ring
        self._ports, self._refs = ports, refs
        self._numbers: dict[Peer, _Numbers] = {}
        self._backend: Peer | None = None
        self._doorbell: Doorbell | None = None
        self._rung = trio.Event()
        self._outrun = False
        self._size: Size | None = None
        ring.watch = {word: notes[note] for word, note in WATCH.items()}
        if notes[Note.TYPING] > ring.taken:
            self._typed.drain()
            notes[Note.TYPING] = 0
        self._room = LineRoom.unpack(notes[Note.ROOM_AFTER if notes[Note.TYPING] else Note.ROOM])

    def start(self) -> None:
        """Take keys, as soon as a backend has some."""
        self._nursery.start_soon(self._take_slots)

    # ---- what the guest writes ----

    @property
    def last(self) -> bytes:
        """The last words."""
        return self._ring.last(REMEMBERED_BYTES, max(self._notes[Note.PICKED], self._ring.written))

    async def relay(self) -> None:
        """Until the guest's end is closed. A keeper that does not keep up holds the guest's console up, and
        nothing else.

        Bytes are laid in the ring, picked from the line, passed on to the keeper, shown to who watches. `PICKED` beyond
        what is shown says that they were picked, and the sluice which of them are still to be passed on.
        """
        while await self._pick():
            picked = self._notes[Note.PICKED]
            await self._said.pass_on(self._pipe)
            await self._wait_for_watchers(picked - self._ring.written)
            self._ring.show(picked)
            self._note_watch()

    async def _pick(self) -> bool:
        """Have the next bytes in the sluice and in the ring. False at the end. What a predecessor had there comes
        first."""
        if self._notes[Note.PICKED] > self._ring.written:
            return True
        if not self._said.held:
            data = await self._look_ahead()
            if not data:
                return False
            self._ring.lay(data)
            self._said.fill_from(self._line.fileno(), len(data))
        self._notes[Note.PICKED] = self._ring.written + self._said.held
        return True

    async def _look_ahead(self) -> bytes:
        """What the guest says next, not yet taken; empty at the end."""
        while True:
            try:
                return self._line.recv(CHUNK_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._line)
            except ConnectionError:
                return b""

    def _note_watch(self) -> None:
        for word, value in self._ring.watch.items():
            self._notes[WATCH[word]] = value

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
                self._note_watch()
                self._rung.set()
                self._rung = trio.Event()
                await trio.lowlevel.wait_readable(doorbell.fileno())
        except trio.ClosedResourceError:
            return

    # ---- keys ----

    async def _take_slots(self) -> None:
        """For as long as the guest lives. A slot that was begun when its backend died is left: its keys come again."""
        await self._pass_keys_on()
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
            await self._put(fitting)
            keys = keys[len(fitting) :]

    async def _put(self, keys: bytes) -> None:
        """Into the guest's line. They are typed once they are in the sluice and count: whoever goes on after us finds
        them there, and nobody sends them again."""
        self._room.typed(keys)
        self._notes[Note.ROOM_AFTER] = self._room.pack()
        self._notes[Note.TYPING] = self._ring.taken + len(keys)
        self._typed.fill(keys)
        self._ring.took_keys(len(keys))
        await self._pass_keys_on()

    async def _pass_keys_on(self) -> None:
        """Those that count."""
        await self._typed.pass_on(self._line.fileno())
        self._notes[Note.ROOM] = self._room.pack()
        self._notes[Note.TYPING] = 0

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
            self._notes[Note.ROOM] = self._room.pack()
            if self._room.room() or self._room.too_long:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def _resize(self, size: Size) -> None:
        begun, self._size = self._size is not None, size
        if not begun:
            self._nursery.start_soon(self._set_size)

    async def _set_size(self) -> None:
        """As soon as there is an agent that does it. Of several sizes that come meanwhile, the last counts."""
        await self._commands.ready()
        while size := self._size:
            try:
                await self._commands.look_at_console(size.rows, size.columns)
            except Refused:
                await trio.sleep(BLIND_S)
                continue
            if self._size is size:
                self._size = None

    async def _report(self, backend: Peer | None, broken: RingBroken) -> None:
        self._domain.log.error("ring.faulted", backend=str(backend), what=broken.what, evidence=broken.evidence)
        try:
            await self._domain.call(ConsoleFault, peer=backend, what=broken.what, evidence=broken.evidence)
        except Refused as refusal:
            self._domain.log.info("fault.refused", backend=str(backend), why=refusal.why)
