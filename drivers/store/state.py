"""All that the store knows, and the changes that it is made of.

What a request does is decided first, as a list of changes; they are journaled together, and then applied. So a store
that recovers is the store that was: it applies the same changes in the same order.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from drivers.store.node import Node
from drivers.store.paths import ROOT, SPECIAL, home_of, name_of, parent_of
from drivers.store.permissions import DEAD, DOM0_ALONE, Permissions
from drivers.store.transaction import Transaction

__all__ = ["Change", "Connection", "State", "Tag", "Watch"]

Change = tuple[Any, ...]
"""A tag, and what it needs."""


class Tag(IntEnum):
    """What has changed, and with which values."""

    NODE = 1
    """path, value, permissions: it is so now. Its parent is there."""
    REMOVED = 2
    """path: gone, with all below it."""
    WATCHED = 3
    """connection, path, token, path as the client says it."""
    UNWATCHED = 4
    """connection, path, token."""
    EVENT = 5
    """connection, body."""
    CONNECTED = 6
    """connection, domid."""
    DISCONNECTED = 7
    """connection."""
    INTRODUCED = 8
    """domid, generation."""
    RELEASED = 9
    """domid."""
    BEGUN = 10
    """connection, transaction."""
    ENDED = 11
    """connection, transaction."""
    ANSWERED = 12
    """connection, number, operation, body: of a request that changed something."""
    SENT = 13
    """connection, number: events up to it are with the client."""
    SPECIAL = 14
    """path, permissions: of one that is not in the tree."""
    TARGET = 15
    """domid, the domain it acts for."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A connection's, on `path` and below it. `said`: as the client calls it, relative to its folder."""

    connection: int
    path: bytes
    token: bytes
    said: bytes
    order: int
    """Among all watches that were set."""

    def body_for(self, path: bytes) -> bytes:
        """Of an event there."""
        shown = path if self.said == self.path or self.path in SPECIAL else self.said + path[len(self.path) :]
        return shown + b"\0" + self.token + b"\0"


@dataclass(slots=True)
class Connection:
    """One client."""

    domid: int
    watches: dict[tuple[bytes, bytes], Watch] = field(default_factory=dict)
    transactions: dict[int, Transaction | None] = field(default_factory=dict)
    """None for one that was begun in another life: it ends in a conflict."""
    last_transaction: int = 0
    answered: tuple[int, int, bytes] | None = None
    events: deque[tuple[int, bytes]] = field(default_factory=deque)
    """Those that are not with the client, as far as is known."""
    mergeable: dict[bytes, int] = field(default_factory=dict)
    """Those that were not even shown to it: another one like that says nothing new."""
    last_event: int = 0

    home: bytes = field(init=False)
    """Where its relative paths begin."""

    def __post_init__(self) -> None:
        self.home = home_of(self.domid)


class State:
    """What changes make. `apply` never fails for what was decided on the same state."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {ROOT: Node(b"", DOM0_ALONE, {}, 1)}
        self.generation = 1
        self.special: dict[bytes, Permissions] = dict.fromkeys(SPECIAL, DOM0_ALONE)
        self.connections: dict[int, Connection] = {}
        self.watches: dict[bytes, dict[Watch, None]] = {}
        """By path."""
        self.last_watch = 0
        self.domains: dict[int, int] = {}
        """Their generations."""
        self.targets: dict[int, int] = {}
        self.owned: dict[int, dict[bytes, None]] = {}
        """Nodes by the domains that are named in their permissions, other than Dom0: the owner, or another."""
        self.counts: dict[int, int] = {}
        """Of nodes, by owner."""
        self.woken: set[int] = set()
        """Who has got events."""
        self._acts: dict[int, Callable[..., None]] = {
            Tag.NODE: self._node,
            Tag.REMOVED: self._removed,
            Tag.WATCHED: self._watched,
            Tag.UNWATCHED: self._unwatched,
            Tag.EVENT: self._event,
            Tag.CONNECTED: self._connected,
            Tag.DISCONNECTED: self._disconnected,
            Tag.INTRODUCED: self._introduced,
            Tag.RELEASED: self._released,
            Tag.BEGUN: self._begun,
            Tag.ENDED: self._ended,
            Tag.ANSWERED: self._answered,
            Tag.SENT: self._sent,
            Tag.SPECIAL: self._special,
            Tag.TARGET: self._target,
        }
        for path in (b"/tool", b"/tool/xenstored"):
            self._node(path, b"", DOM0_ALONE)

    def apply(self, changes: Iterable[Change]) -> None:
        """In order."""
        acts = self._acts
        for tag, *values in changes:
            acts[tag](*values)

    def snapshot(self) -> Iterator[list[Change]]:
        """Changes that make this state of an empty one, in pieces that are not too long."""
        yield [(Tag.SPECIAL, *each) for each in self.special.items()]
        yield [(Tag.INTRODUCED, *each) for each in self.domains.items()]
        yield [(Tag.TARGET, *each) for each in self.targets.items()]
        pending = [ROOT]
        while pending:
            path = pending.pop()
            node = self.nodes[path]
            yield [(Tag.NODE, path, node.value, node.permissions)]
            below = path if path != ROOT else b""
            pending.extend(below + b"/" + name for name in reversed(node.children))
        for number, connection in self.connections.items():
            yield list(_remade(number, connection))

    def below(self, path: bytes) -> Iterator[bytes]:
        """All nodes below one, children before their parents."""
        prefix = path if path != ROOT else b""
        for name in self.nodes[path].children:
            child = prefix + b"/" + name
            yield from self.below(child)
            yield child

    def _node(self, path: bytes, value: bytes, permissions: Any) -> None:
        permissions = tuple(map(tuple, permissions))
        self.generation += 1
        node = self.nodes.get(path)
        if node is None:
            parent = self.nodes[parent_of(path)]
            parent.children[name_of(path)] = None
            parent.generation = self.generation
            self.nodes[path] = Node(value, permissions, {}, self.generation)
            self._name(path, permissions)
            return
        if node.permissions != permissions:
            self._unname(path, node.permissions)
            self._name(path, permissions)
            node.permissions = permissions
        node.value = value
        node.generation = self.generation

    def _removed(self, path: bytes) -> None:
        if path not in self.nodes:
            return
        self.generation += 1
        for each in (*self.below(path), path):
            self._unname(each, self.nodes.pop(each).permissions)
        parent = self.nodes[parent_of(path)]
        del parent.children[name_of(path)]
        parent.generation = self.generation

    def _name(self, path: bytes, permissions: Permissions) -> None:
        owner = permissions[0][0]
        self.counts[owner] = self.counts.get(owner, 0) + 1
        for domid, bits in permissions:
            if domid and not bits & DEAD:
                self.owned.setdefault(domid, {})[path] = None

    def _unname(self, path: bytes, permissions: Permissions) -> None:
        self.counts[permissions[0][0]] -= 1
        for domid, bits in permissions:
            if domid and not bits & DEAD:
                self.owned[domid].pop(path, None)

    def _watched(self, connection: int, path: bytes, token: bytes, said: bytes) -> None:
        self.last_watch += 1
        watch = Watch(connection, path, token, said, self.last_watch)
        self.connections[connection].watches[path, token] = watch
        self.watches.setdefault(path, {})[watch] = None

    def _unwatched(self, connection: int, path: bytes, token: bytes) -> None:
        watch = self.connections[connection].watches.pop((path, token))
        at = self.watches[path]
        del at[watch]
        if not at:
            del self.watches[path]

    def _event(self, connection: int, body: bytes) -> None:
        client = self.connections[connection]
        client.last_event += 1
        client.events.append((client.last_event, body))
        client.mergeable[body] = client.last_event
        self.woken.add(connection)

    def _connected(self, connection: int, domid: int) -> None:
        self.connections[connection] = Connection(domid)

    def _disconnected(self, connection: int) -> None:
        for path, token in list(self.connections[connection].watches):
            self._unwatched(connection, path, token)
        del self.connections[connection]
        self.woken.discard(connection)

    def _introduced(self, domid: int, generation: int) -> None:
        self.domains[domid] = generation

    def _released(self, domid: int) -> None:
        del self.domains[domid]
        self.targets.pop(domid, None)
        self.owned.pop(domid, None)
        self.counts.pop(domid, None)

    def _begun(self, connection: int, transaction: int) -> None:
        client = self.connections[connection]
        client.last_transaction = transaction
        client.transactions[transaction] = None

    def _ended(self, connection: int, transaction: int) -> None:
        del self.connections[connection].transactions[transaction]

    def _answered(self, connection: int, number: int, op: int, body: bytes) -> None:
        self.connections[connection].answered = (number, op, body)

    def _sent(self, connection: int, number: int) -> None:
        """Which also numbers the next one, where none is known."""
        client = self.connections[connection]
        while client.events and client.events[0][0] <= number:
            _, body = client.events.popleft()
            if client.mergeable.get(body, number + 1) <= number:
                del client.mergeable[body]
        client.last_event = max(client.last_event, number)

    def _special(self, path: bytes, permissions: Any) -> None:
        self.special[path] = tuple(map(tuple, permissions))

    def _target(self, domid: int, target: int) -> None:
        self.targets[domid] = target


def _remade(number: int, connection: Connection) -> Iterator[Change]:
    yield (Tag.CONNECTED, number, connection.domid)
    for watch in connection.watches.values():
        yield (Tag.WATCHED, number, watch.path, watch.token, watch.said)
    for transaction in connection.transactions:
        yield (Tag.BEGUN, number, transaction)
    if connection.last_transaction not in connection.transactions and connection.last_transaction:
        yield (Tag.BEGUN, number, connection.last_transaction)
        yield (Tag.ENDED, number, connection.last_transaction)
    if connection.answered is not None:
        yield (Tag.ANSWERED, number, *connection.answered)
    first = connection.events[0][0] if connection.events else connection.last_event + 1
    yield (Tag.SENT, number, first - 1)
    for _, body in connection.events:
        yield (Tag.EVENT, number, body)
