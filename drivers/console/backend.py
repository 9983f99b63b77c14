"""What the console driver decides: who watches a guest's console from where, who types, how far all have seen.

No files and no clock here.
"""

from dataclasses import dataclass

from kernel.abi.io.consif import CHUNK_BYTES, OUT_RING, TAIL_BYTES

__all__ = ["Desk", "Watcher", "beginning", "next_piece"]


@dataclass(eq=False, slots=True)
class Watcher:
    """One administrator. `position` is the number of the next byte that he has not been given; `session` is not 0 while
    the keyboard is his, and `placed` then the number of his next key."""

    position: int
    types: bool
    session: int = 0
    placed: int = 0

    def unplaced(self, number: int, keys: bytes) -> bytes | None:
        """Those keys that were not placed before: none for who may not type, None where some are left out."""
        if not self.session:
            return b""
        return keys[self.placed - number :] if number <= self.placed else None


def beginning(written: int, tail: int, at: int | None) -> int:
    """Where a watcher begins: where he was, or `tail` bytes back."""
    if at is not None:
        return min(at, written)
    return written - min(tail, TAIL_BYTES, written)


def next_piece(written: int, position: int, most: int) -> tuple[int, int]:
    """From where to where a watcher is given output next. One who was outrun goes on with what is still whole."""
    if written - position > OUT_RING - CHUNK_BYTES:
        position = written - TAIL_BYTES
    return position, min(written, position + most)


class Desk:
    """Those who watch one guest's console. At most one of them types: the first, or who takes it from him.

    A fresh backend knows from its predecessor's words (`consif.SEEN` …) how far all were, how many there were, and
    whose the keyboard was: until they are back, or `settle` says that they had time enough, nothing is said to be seen,
    and nobody else gets the keyboard.
    """

    def __init__(self, seen: int = 0, watchers: int = 0, writer: int = 0, last_session: int = 0) -> None:
        self._seen = seen
        self._awaited = watchers
        self._reserved = writer if watchers else 0
        self._last_session = max(writer, last_session)
        self.watchers: list[Watcher] = []
        self.writer: Watcher | None = None

    @property
    def count(self) -> int:
        """Who watches, or is about to again."""
        return max(self._awaited, len(self.watchers))

    @property
    def keyboard(self) -> int:
        """The session that may type, 0 for none."""
        return self.writer.session if self.writer else self._reserved

    def attach(self, position: int, *, keyboard: int = 0, steal: bool = False, watch: bool = False) -> Watcher:
        """Somebody comes, or comes back with the session that he had: on another connection, or from another
        backend."""
        watcher = Watcher(position, not watch)
        self.watchers.append(watcher)
        if keyboard and keyboard == self.keyboard:
            self._give_back(watcher, keyboard)
        elif watcher.types and (steal or not self.keyboard):
            self._give_keyboard(watcher)
        if len(self.watchers) >= self._awaited:
            self._awaited = 0
        return watcher

    def _give_back(self, watcher: Watcher, session: int) -> None:
        if self.writer is not None:
            self.watchers.remove(self.writer)
            self.writer.session = 0
        self.writer, watcher.session, self._reserved = watcher, session, 0

    def _give_keyboard(self, watcher: Watcher | None) -> None:
        if self.writer is not None:
            self.writer.session = 0
        self.writer, self._reserved = watcher, 0
        if watcher is not None:
            self._last_session += 1
            watcher.session, watcher.placed = self._last_session, 0

    def leave(self, watcher: Watcher) -> None:
        """Somebody goes. The keyboard goes to who has waited longest."""
        if watcher in self.watchers:
            self.watchers.remove(watcher)
        if watcher is self.writer:
            self._give_keyboard(self._next_in_line())

    def settle(self) -> None:
        """Who is not back by now does not come back."""
        self._awaited = self._reserved = 0
        if self.writer is None:
            self._give_keyboard(self._next_in_line())

    def _next_in_line(self) -> Watcher | None:
        return next((watcher for watcher in self.watchers if watcher.types), None)

    def handed_on(self) -> tuple[int, int, int, int]:
        """What the guest's next ring begins with, before its watchers leave this one."""
        return self.seen(0), self.count, self.keyboard, self._last_session

    def seen(self, written: int) -> int:
        """How far everybody has seen."""
        positions = [watcher.position for watcher in self.watchers]
        if self._awaited:
            positions.append(self._seen)
        return min(positions, default=written)
