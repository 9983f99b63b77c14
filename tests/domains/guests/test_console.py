"""A guest's console whose actor is killed between any two of its stores: no byte and no key is lost or comes twice."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from domains.frontends.console_ring import ConsoleRing, make_out
from domains.guests.commands import Commands
from domains.guests.console import Console
from domains.guests.line_room import LineRoom
from domains.guests.notes import Note, Notes
from domains.runtime.domain import Domain, open_domain
from domains.runtime.numbers import Numbers
from drivers.console.ring import BackRing
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.hypercalls import ConsoleConnect, Hypercall
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.log import open_log
from kernel.abi.status import Status
from kernel.abi.upcalls import Reply

BACKEND = Peer(DomId(1), Generation(1))
SESSION = 7
SAID = b"".join(b"line %d\n" % number for number in range(30_000))
TYPED = bytes(range(65, 91)) * 60
STEPS = range(1, 1000)


class Killed(Exception):
    """In place of SIGKILL."""


class Fuse:
    """Burns down by one at each step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


class DoomedNotes(Notes):
    def __init__(self, descriptor: int, fuse: Fuse) -> None:
        super().__init__(descriptor)
        self._fuse = fuse

    def __setitem__(self, note: Note, value: int) -> None:
        self._fuse.step()
        super().__setitem__(note, value)
        self._fuse.step()


class DoomedRing(ConsoleRing):
    def __init__(self, out, fuse: Fuse) -> None:
        super().__init__(out)
        self._fuse = fuse

    def lay(self, data: bytes) -> None:
        self._fuse.step()
        super().lay(data)
        self._fuse.step()

    def show(self, upto: int) -> None:
        self._fuse.step()
        super().show(upto)

    def took_keys(self, count: int) -> None:
        self._fuse.step()
        super().took_keys(count)
        self._fuse.step()


class Kept:
    """What a guest's reaper keeps, the guest's end of its line, and the keeper's of the pipe."""

    def __init__(self) -> None:
        line, self.guest = socket.socketpair()
        self.keeper, pipe = os.pipe()
        self.descriptors = {"console-line": line.detach(), "console": pipe, "notes": os.memfd_create("notes")}
        os.ftruncate(self.descriptors["notes"], 4096)
        for sluice in ("said", "typed"):
            ends = os.pipe2(os.O_NONBLOCK)
            self.descriptors[f"{sluice}.read"], self.descriptors[f"{sluice}.write"] = ends
        self.out = make_out()
        self.log = os.open(os.devnull, os.O_WRONLY)
        os.set_blocking(self.keeper, False)
        self.guest.setblocking(False)

    def close(self) -> None:
        self.guest.close()
        packet.close_all([self.keeper, self.log, *self.descriptors.values()])

    def shown(self) -> bytes:
        """What a watcher sees, who was there from the beginning."""
        words = self.out.view[:4096].cast("Q")
        return bytes(self.out.view[4096 : 4096 + words[0]])


@pytest.fixture
def new_guest():
    made: list[Kept] = []

    def make() -> Kept:
        made.append(Kept())
        return made[-1]

    yield make
    for kept in made:
        kept.close()


@asynccontextmanager
async def actor(kept: Kept, steps: int) -> AsyncIterator[tuple[Console, trio.Nursery, socket.socket]]:
    """One that dies after so many steps: its console, and the hypervisor's end of its channel."""
    ours, hypervisor = packet.pair()
    fuse = Fuse(steps)
    inherited = {**kept.descriptors, "console-line": os.dup(kept.descriptors["console-line"])}
    with hypervisor:
        peer = Peer(DomId(2), Generation(1))
        domain = Domain("g", peer, ours.detach(), open_log(kept.log), b"", inherited)
        line, agents = socket.socketpair()
        notes, ring = DoomedNotes(kept.descriptors["notes"], fuse), DoomedRing(kept.out, fuse)
        try:
            async with trio.open_nursery() as nursery, open_domain(domain):
                commands = Commands(domain, nursery, line.detach(), Numbers(), notes)
                console = Console(domain, nursery, commands, notes, ring, Numbers(), Numbers())
                yield console, nursery, hypervisor
                nursery.cancel_scope.cancel()
        finally:
            agents.close()
            commands._agent.close()
            console._line.close()
            ring.hang_up()
            domain.close()


async def dies(kept: Kept, steps: int, act: Callable[..., Awaitable[None]]) -> bool:
    """Whether an actor died at it, before it was through."""
    died = False
    try:
        async with actor(kept, steps) as (console, nursery, hypervisor):
            await act(kept, console, nursery, hypervisor)
    except* Killed:
        died = True
    return died


async def say(kept: Kept) -> None:
    with kept.guest.dup() as guest:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(guest))
        await stream.send_all(SAID)
        kept.guest.shutdown(socket.SHUT_WR)


async def keep(kept: Kept, into: bytearray) -> None:
    """Until it has all."""
    while len(into) < len(SAID):
        await trio.lowlevel.wait_readable(kept.keeper)
        into += os.read(kept.keeper, 8192)


async def relay(_kept: Kept, console: Console, _nursery: trio.Nursery, _hypervisor: socket.socket) -> None:
    await console.relay()
    assert console.last == SAID[-len(console.last) :]
    assert console.last


async def test_what_the_guest_says_is_kept_and_shown_once_wherever_its_actor_dies(new_guest):
    for steps in STEPS:
        kept, file = new_guest(), bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, kept)
            nursery.start_soon(keep, kept, file)
            died = await dies(kept, steps, relay)
            assert not await dies(kept, 0, relay)
        assert file == SAID, steps
        assert kept.shown() == SAID, steps
        if not died:
            return


async def connect(console: Console, nursery: trio.Nursery, hypervisor: socket.socket) -> BackRing:
    """What hypervisor and backend do when a guest makes a ring."""
    nursery.start_soon(console.serve_by, BACKEND)
    await trio.lowlevel.wait_readable(hypervisor)
    data, descriptors = packet.receive(hypervisor)
    calls = Codec(Hypercall).decode(data)
    packet.send(hypervisor, encode([Reply(call.request, Status.OK) for call in calls]))
    (made,) = (call for call in calls if isinstance(call, ConsoleConnect))
    ours, theirs = socket.socketpair()
    assert console.connected(made.port, ours.detach())
    back = BackRing(descriptors[0], descriptors[1], theirs)
    packet.close_all(descriptors)
    return back


async def type_all(kept: Kept, console: Console, nursery: trio.Nursery, hypervisor: socket.socket) -> None:
    """From the first key that is not taken."""
    console.start()
    back = await connect(console, nursery, hypervisor)
    try:
        placed = back.taken(SESSION)
        while back.taken(SESSION) < len(TYPED):
            if placed < len(TYPED) and back.has_room():
                placed += back.put_keys(SESSION, placed, TYPED[placed : placed + 500])
            await trio.lowlevel.wait_readable(back.doorbell.fileno())
            back.doorbell.drain()
    finally:
        back.close()


async def test_each_key_is_in_the_guests_line_once_wherever_its_actor_dies(new_guest):
    for steps in STEPS:
        kept = new_guest()
        died = await dies(kept, steps, type_all)
        assert not await dies(kept, 0, type_all)
        assert kept.guest.recv(1 << 16) == TYPED, steps
        notes = Notes(kept.descriptors["notes"])
        assert LineRoom.unpack(notes[Note.ROOM]) == LineRoom(typed_since=len(TYPED), begun=len(TYPED)), steps
        if not died:
            return
