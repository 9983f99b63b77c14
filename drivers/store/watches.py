"""Watches: who wants to hear of changes of a node and of what is below it."""

from drivers.store.paths import ancestors
from drivers.store.quotas import Room

__all__ = ["Watch", "Watches"]

WATCH_BYTES = 48
"""What a watch takes in a snapshot beside its path and its token, at most."""


class Watch:
    """`connection` is told of `path`, by its `token`. `cut`: what of each path its client left out, being relative."""

    __slots__ = ("connection", "cut", "path", "sequence", "token")

    def __init__(self, connection: int, path: bytes, token: bytes, cut: int, sequence: int) -> None:
        self.connection = connection
        self.path = path
        self.token = token
        self.cut = cut
        self.sequence = sequence

    def event(self, path: bytes) -> bytes:
        """The body of the event that says so."""
        return b"%s\0%s\0" % (path[self.cut :], self.token)

    def weight(self) -> int:
        return WATCH_BYTES + len(self.path) + len(self.token)


class Watches:
    """All of them, to be found by the path that changed."""

    def __init__(self, room: Room) -> None:
        self._by_path: dict[bytes, list[Watch]] = {}
        self._room = room
        self.sequence = 0

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def add(self, watch: Watch) -> None:
        self._by_path.setdefault(watch.path, []).append(watch)
        self._room.used += watch.weight()

    def remove(self, watch: Watch) -> None:
        at_path = self._by_path[watch.path]
        at_path.remove(watch)
        if not at_path:
            del self._by_path[watch.path]
        self._room.used -= watch.weight()

    def of(self, path: bytes, exact: bool) -> list[Watch]:
        """Those that fire for this path, oldest first; `exact`: not those of nodes above it."""
        paths = [path] if exact else ancestors(path)
        found = [watch for each in paths for watch in self._by_path.get(each, ())]
        return sorted(found, key=_age) if len(found) > 1 else found


def _age(watch: Watch) -> int:
    return watch.sequence
