"""`tv console`: a guest's console on this terminal, or between pipes."""

import enum
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kernel.abi import packet
from kernel.abi.admin import AdminConsole
from kernel.abi.codec import encode
from kernel.abi.console_io import ConsoleEnded, ConsoleOutput, ConsoleRole, ConsoleSize, ConsoleTaken
from kernel.abi.ids import Generation
from kernel.abi.keeping import TAIL_BYTES
from kernel.abi.status import Status
from triovisor.client import Client
from triovisor.connection import Connection, TvError
from triovisor.keyboard import Keyboard
from triovisor.terminal import raw_terminal, window_size, woken_by_resize

__all__ = ["End", "Ended", "Settings", "show_console"]

DETACH = b"\x1d"
"""Ctrl-]."""

RETURN_S = 15.0
"""For a console driver that died to be replaced: its longest back-off is 2 s."""

RETURN_AGAIN_S = 0.02

LAST_KEYS_S = 10.0
"""For a guest to read the last keys, once there are no more."""

QUIET_S, QUIET_AT_MOST_S = 0.3, 5.0
"""Between pipes the end of input is the end when the guest has taken it all and has been quiet for so long."""

WATCHING = "somebody else has the keyboard, you are watching: --steal takes it"

_GONE = frozenset({Status.ENOENT, Status.EHOSTDOWN, Status.ESTALE})
"""A guest that was there has ended."""


class End(enum.IntEnum):
    """Exit status of `tv console`."""

    DETACHED = 0
    REFUSED = 1
    NOT_RUNNING = 3
    GUEST_ENDED = 4
    LOST = 5
    UNREAD = 6


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended, and one line for a person."""

    end: End
    why: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Which guest, and how. `write` takes output, `say` a line for the person."""

    name: str
    steal: bool
    watch: bool
    write: Callable[[bytes], None]
    say: Callable[[str], None]


def show_console(client: Client, settings: Settings) -> Ended:
    """Show it until somebody detaches, input ends, or the guest does. Raises TvError where it never began."""
    with raw_terminal() as raw, woken_by_resize() as resized:
        return _Console(client, settings, raw, resized).run()


@dataclass(slots=True)
class _Console:
    client: Client
    settings: Settings
    raw: bool
    resized: int
    keyboard: Keyboard = field(default_factory=Keyboard)
    at: int | None = None
    generation: Generation | None = None
    input_over: bool = False
    detached: bool = False
    told_watching: bool = False
    heard_s: float = 0.0
    over_s: float = 0.0
    lost_s: float | None = None

    def run(self) -> Ended:
        while True:
            try:
                with self.client.console(self._request()) as (connection, generation):
                    self.generation = Generation(generation)
                    ended = self._serve(connection)
            except TvError as error:
                ended = self._refused(error)
            if ended is not None:
                return ended
            self.keyboard.disconnected()
            self.lost_s = self.lost_s or time.monotonic()
            if self.detached or time.monotonic() - self.lost_s > RETURN_S:
                return Ended(End.LOST, "the console was lost, and has not come back: tv driver list may tell why")
            time.sleep(RETURN_AGAIN_S)

    def _request(self) -> AdminConsole:
        return AdminConsole(
            self.settings.name,
            tail=TAIL_BYTES if self.raw else 0,
            keyboard=self.keyboard.session or 0,
            at=self.at,
            generation=self.generation,
            steal=self.settings.steal and self.generation is None,
            watch=self.settings.watch,
        )

    def _refused(self, error: TvError) -> Ended | None:
        """The end, or None where it is worth another try."""
        if self.generation is None:
            raise error
        no_hypervisor = error.status is Status.ENOENT and error.why.startswith("no hypervisor")
        if no_hypervisor:
            return Ended(End.LOST, f"the hypervisor has ended ({error.why})")
        if error.status in _GONE:
            return Ended(End.GUEST_ENDED, f"guest {self.settings.name} has ended")
        return None

    def _serve(self, connection: Connection) -> Ended | None:
        """One connection. None where it was lost."""
        self._size_to_send = window_size()
        self.heard_s = time.monotonic()
        while True:
            ended = self._take(connection) if self._wait(connection) else None
            if ended is not None:
                return ended if ended.why or ended.end else None
            self._take_size()
            if not self._send(connection):
                return None
            ended = self._over()
            if ended is not None:
                return ended

    _size_to_send: tuple[int, int] | None = None

    def _wait(self, connection: Connection) -> bool:
        """For something to do. True where the connection has something."""
        poll = select.poll()
        wants_room = self.keyboard.next() is not None or self._size_to_send is not None
        poll.register(connection.socket, select.POLLIN | (select.POLLOUT if wants_room else 0))
        poll.register(self.resized, select.POLLIN)
        if not self.input_over and self.keyboard.room > 0:
            poll.register(0, select.POLLIN)
        ready = dict(poll.poll(100 if self.input_over else None))
        if 0 in ready:
            self._read_input()
        return bool(ready.get(connection.socket.fileno(), 0) & ~select.POLLOUT)

    def _read_input(self) -> None:
        try:
            data = os.read(0, min(4096, self.keyboard.room))
        except OSError:
            data = b""
        keys, detach, _ = data.partition(DETACH) if self.raw else (data, b"", b"")
        if keys and not self.keyboard.type(keys) and not self.told_watching:
            self.told_watching = True
            self.settings.say(WATCHING)
        if detach or not data:
            self.input_over, self.detached, self.over_s = True, bool(detach), time.monotonic()

    def _take_size(self) -> None:
        try:
            os.read(self.resized, 512)
        except BlockingIOError:
            return
        self._size_to_send = window_size()

    def _send(self, connection: Connection) -> bool:
        """What there is, as far as it is taken. False where the connection is lost."""
        try:
            if self._size_to_send is not None:
                packet.send(connection.socket, encode([ConsoleSize(*self._size_to_send)]))
                self._size_to_send = None
            while (keys := self.keyboard.next()) is not None:
                packet.send(connection.socket, encode([keys]))
                self.keyboard.sent(keys)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _take(self, connection: Connection) -> Ended | None:
        """What has come. An `Ended` without a word where the connection is lost."""
        messages = connection.take()
        for message in messages:
            match message:
                case ConsoleOutput(number=number, data=data):
                    self._show(number, data)
                case ConsoleRole():
                    self._play(message)
                case ConsoleTaken(taken=taken):
                    try:
                        self.keyboard.taken(taken)
                    except ValueError as error:
                        raise TvError(Status.EIO, f"the console driver broke its protocol: {error}") from error
                case ConsoleEnded(why=why):
                    return Ended(End.GUEST_ENDED, why or "the console has ended")
                case _:
                    break
            self.heard_s, self.lost_s = time.monotonic(), None
        return None if messages else Ended(End.DETACHED, "")

    def _show(self, number: int, data: bytes) -> None:
        if self.at is not None and number > self.at:
            self.settings.say(f"{number - self.at} bytes went by unseen: console/{self.settings.name}.log has them")
        self.at = number + len(data)
        self.settings.write(data)

    def _play(self, role: ConsoleRole) -> None:
        had = self.keyboard.session
        try:
            dropped = self.keyboard.given(role)
        except ValueError as error:
            raise TvError(Status.EIO, f"the console driver broke its protocol: {error}") from error
        lost = f"; {dropped} keys were not typed" if dropped else ""
        if role.session == 0 and had != 0:
            self.settings.say((WATCHING if had is None else "the keyboard was taken from you") + lost)
        elif role.session and had == 0:
            self.told_watching = False
            self.settings.say("you have the keyboard now")

    def _over(self) -> Ended | None:
        """The end, where there is no more input and all of it has arrived."""
        if not self.input_over:
            return None
        now_s = time.monotonic()
        untaken = self.keyboard.untaken
        if untaken and now_s - self.over_s < LAST_KEYS_S:
            return None
        if untaken:
            return Ended(End.UNREAD, f"guest {self.settings.name} has not read the last {untaken} keys")
        if not self.detached and now_s - max(self.heard_s, self.over_s) < QUIET_S:
            return None if now_s - self.over_s < QUIET_AT_MOST_S else Ended(End.DETACHED, "input has ended")
        return Ended(End.DETACHED, "detached" if self.detached else "input has ended")
