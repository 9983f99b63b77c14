"""One guest's console at this incarnation of the driver, and each administrator's connection to it."""

import contextlib
from collections.abc import Callable

import msgspec
import trio

from domains.runtime.channel import Channel
from domains.runtime.faults import FaultPoints
from drivers.console.backend import Desk, Watcher, beginning, next_piece
from drivers.console.ring import BackRing, FrontendBroken
from kernel.abi.codec import Codec, encode
from kernel.abi.console_io import (
    OUTPUT_BYTES,
    ConsoleAttach,
    ConsoleEnded,
    ConsoleKeys,
    ConsoleOutput,
    ConsoleRole,
    ConsoleSize,
    ConsoleTaken,
)
from kernel.abi.packet import close_all
from kernel.abi.status import DomainFault

__all__ = ["Served"]

RETURN_S = 1.0
"""For who watched when the last incarnation died to come back. Shorter than a guest may be held up."""

LAST_WORD_S = 5.0
"""For a watcher to take what is left once the guest has ended."""

_codec = Codec(ConsoleKeys | ConsoleSize)


class Served:
    """One guest's console. `on_broken` hears what its frontend did wrong; then nobody is served any more. `earlier` was
    the same guest's, on a ring that it lost."""

    def __init__(
        self, name: str, ring: BackRing, on_broken: Callable[[FrontendBroken], None], earlier: "Served | None"
    ) -> None:
        self.name = name
        self.ring = ring
        self.desk = Desk(*(earlier.handed_on if earlier else ring.carried))
        self.handed_on: tuple[int, int, int, int] = self.desk.handed_on()
        self.lost = False
        self.ended = ""
        self._finished = trio.Event()
        self.news = trio.Event()
        self._on_broken = on_broken

    async def run(self) -> None:
        """Until the guest is gone: each ring of its doorbell is news for all."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle)
            nursery.start_soon(self._listen)
            await self._finished.wait()
            nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        """A frontend that hung up has no console any more, and is gone or will have us ended."""
        while self.ring.doorbell.drain():
            self.tell_all()
            await trio.lowlevel.wait_readable(self.ring.doorbell.fileno())

    async def _settle(self) -> None:
        await trio.sleep(RETURN_S)
        self.desk.settle()
        self.moved()
        self.tell_all()

    def tell_all(self) -> None:
        """Wake all watchers."""
        self.news.set()
        self.news = trio.Event()

    def moved(self) -> None:
        """Somebody came, went, or saw more."""
        if not self.ended:
            desk = self.desk
            with self.blaming():
                self.ring.tell(desk.seen(self.ring.written()), desk.count, desk.keyboard)

    def end(self, why: str) -> None:
        """The guest is gone. Watchers are given what it wrote last, and told."""
        self.ended = self.ended or why
        self._finished.set()
        self.tell_all()

    def lose(self) -> None:
        """The guest goes on in another process, whose ring is on its way: watchers are let go without a word. They come
        back with the keys that this ring may have lost."""
        if not self.ended:
            self.handed_on, self.lost = self.desk.handed_on(), True
            self.end("lost")

    @contextlib.contextmanager
    def blaming(self):  # type: ignore[no-untyped-def]
        """Around what looks at the ring: a frontend that broke it has no console any more. One that has hung up may
        have a successor, which begins to count anew."""
        try:
            yield
        except FrontendBroken as broken:
            if not self.ring.doorbell.drain():
                self.lose()
            elif not self.ended:
                self.end(f"guest {self.name} broke the console ring: {broken.what}")
                self._on_broken(broken)

    async def watch(self, channel: Channel, attach: ConsoleAttach, faults: FaultPoints) -> None:
        """Serve one administrator until he leaves or the guest is gone."""
        written = 0
        with self.blaming():
            written = self.ring.written()
        position = beginning(written, attach.tail, attach.at)
        watcher = self.desk.attach(position, keyboard=attach.keyboard, steal=attach.steal, watch=attach.watch)
        watcher.placed = self.ring.taken(watcher.session)
        self.moved()
        self.tell_all()
        try:
            await _Connection(self, channel, watcher, faults).run()
        finally:
            self.desk.leave(watcher)
            self.moved()
            self.tell_all()


class _Connection:
    """What goes to one administrator is sent by one task, in order; what comes from him is taken by another."""

    def __init__(self, served: Served, channel: Channel, watcher: Watcher, faults: FaultPoints) -> None:
        self._served = served
        self._ring = served.ring
        self._channel = channel
        self._watcher = watcher
        self._faults = faults
        self._size: ConsoleSize | None = None
        self._told_session: int | None = None
        self._told_taken = 0

    @property
    def _types(self) -> bool:
        return self._served.desk.writer is self._watcher and not self._served.ended

    async def run(self) -> None:
        """Until either side is through with the other."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, nursery.cancel_scope)
            with contextlib.suppress(OSError):
                await self._give()
            nursery.cancel_scope.cancel()

    async def _give(self) -> None:
        """Role, acknowledgements, output; at the guest's end its last words."""
        deadline = trio.CancelScope()
        with deadline:
            while self._watcher in self._served.desk.watchers:
                news, ended = self._served.news, self._served.ended
                if self._served.lost:
                    return
                if ended and deadline.deadline == float("inf"):
                    deadline.deadline = trio.current_time() + LAST_WORD_S
                await self._give_role()
                if await self._give_output():
                    continue
                if ended:
                    await self._channel.send(encode([ConsoleEnded(ended[:512])]))
                    return
                await news.wait()

    async def _give_role(self) -> None:
        session = self._watcher.session
        taken = self._ring.taken(session)
        if taken > self._watcher.placed and session:
            with self._served.blaming():
                raise FrontendBroken("more keys taken than sent", f"{taken} of {self._watcher.placed}")
        elif session != self._told_session:
            self._told_session, self._told_taken = session, taken
            await self._channel.send(encode([ConsoleRole(session, taken)]))
            if session and self._size is not None:
                self._put_size(self._size)
        elif session and taken > self._told_taken:
            self._told_taken = taken
            await self._channel.send(encode([ConsoleTaken(taken)]))

    async def _give_output(self) -> bool:
        """The next piece, if there is one."""
        data, start, stop = None, 0, 0
        with self._served.blaming():
            start, stop = next_piece(self._ring.written(), self._watcher.position, OUTPUT_BYTES)
            data = self._ring.read(start, stop) if start < stop else b""
        if data is None or (not data and start == stop):
            return data is None and not self._served.ended
        self._faults.hit("output")
        await self._channel.send(encode([ConsoleOutput(start, data)]))
        self._watcher.position = stop
        self._served.moved()
        return True

    async def _take(self, life: trio.CancelScope) -> None:
        """Until he leaves, or sends what is no message of his."""
        with contextlib.suppress(OSError, DomainFault, msgspec.DecodeError):
            while True:
                data, descriptors = await self._channel.receive()
                close_all(descriptors)
                if not data or not await self._take_all(_codec.decode(data)):
                    break
        life.cancel()

    async def _take_all(self, messages: list[object]) -> bool:
        for message in messages:
            match message:
                case ConsoleKeys(number=number, data=data):
                    keys = self._watcher.unplaced(number, data)
                    if keys is None:
                        return False
                    await self._put_keys(keys)
                case ConsoleSize():
                    self._size = message
                    if self._types:
                        self._put_size(message)
                case _:
                    return False
        return True

    async def _put_keys(self, keys: bytes) -> None:
        """Into slots, as they become free. While he waits, nothing more is taken from him."""
        session = self._watcher.session
        while keys and self._types and self._watcher.session == session:
            news, room = self._served.news, False
            with self._served.blaming():
                room = self._ring.has_room()
            if not room:
                await news.wait()
                continue
            count = self._ring.put_keys(session, self._watcher.placed, keys)
            self._watcher.placed += count
            keys = keys[count:]
            self._faults.hit("keys")

    def _put_size(self, size: ConsoleSize) -> None:
        """Where there is no room for it now, the next one will do."""
        with self._served.blaming():
            if self._ring.has_room():
                self._ring.put_size(self._watcher.session, size.rows, size.columns)
