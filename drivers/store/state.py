"""All that a store knows, as data, and how it becomes bytes and is read again."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

import msgspec

from drivers.store.connection import CONNECTION_BYTES, Connection, Event
from drivers.store.paths import child_of, name_of
from drivers.store.permissions import NONE, Permissions
from drivers.store.quotas import Quotas, Room
from drivers.store.transactions import Transaction
from drivers.store.tree import Node, Tree
from drivers.store.watches import Watch, Watches

__all__ = ["Domain", "State", "dump", "load", "node_of", "plain"]

FIRST_NODES = (b"/", b"/tool", b"/tool/xenstored")
SPECIAL = (b"@introduceDomain", b"@releaseDomain")


@dataclass(slots=True)
class Domain:
    """One that the store has heard of; `introduced`: one that has its part in xenstore."""

    introduced: bool = False
    target: int | None = None
    """Whose device model it is."""
    generation: int = 0
    """As the hypervisor counts its incarnations; 0 for one that only an administrator has introduced."""


@dataclass
class State:
    """What must survive. `room`: what all but the events may take in a snapshot; `event_room`: what those may."""

    room: Room
    event_room: Room
    quotas: Quotas
    domains: dict[int, Domain] = field(default_factory=dict)
    connections: dict[int, Connection] = field(default_factory=dict)
    special: dict[bytes, Permissions] = field(default_factory=dict)
    """Who may hear of the special events."""

    def __post_init__(self) -> None:
        self.tree = Tree(self.room)
        self.watches = Watches(self.room)

    def begin(self) -> None:
        """What is there at first, as of Xen's own: three nodes, and Dom0."""
        self.tree.place(b"/", Node(b"", ((0, NONE),), 0))
        for path in FIRST_NODES[1:]:
            self.tree.add(path, b"", ((0, NONE),))
        self.domains[0] = Domain(introduced=True)
        self.special = dict.fromkeys(SPECIAL, ((0, NONE),))


def plain(node: Node) -> list[Any]:
    return [node.value, node.permissions, list(node.children)]


def node_of(fields: list[Any]) -> Node:
    value, permissions, children = fields
    node = Node(value, _permissions(permissions), 0)
    for name in children:
        node.add_child(name)
    return node


def _permissions(entries: list[list[int]]) -> Permissions:
    return tuple((domid, may) for domid, may in entries)


def dump(state: State) -> bytes:
    """A snapshot."""
    return msgspec.msgpack.encode(
        [
            astuple(state.quotas),
            state.tree.generation,
            state.watches.sequence,
            [[domid, each.introduced, each.target, each.generation] for domid, each in state.domains.items()],
            [_dump_connection(each) for each in state.connections.values()],
            list(state.special.items()),
            list(_dump_nodes(state.tree)),
        ]
    )


def _dump_connection(each: Connection) -> list[Any]:
    return [
        each.number,
        each.domid,
        each.last,
        [[watch.path, watch.token, watch.cut, watch.sequence] for watch in each.watches.values()],
        list(each.transactions),
        each.next_transaction,
        list(each.events),
        each.next_event,
        each.overdue,
    ]


def _dump_nodes(tree: Tree) -> Iterator[list[Any]]:
    """From the root on, parents before children, each with how many those are."""
    stack = [b"/"]
    while stack:
        path = stack.pop()
        node = tree.nodes[path]
        yield [name_of(path), node.value, node.permissions, node.generation, len(node.children)]
        stack += [child_of(path, name) for name in reversed(node.children)]


def load(snapshot: bytes, room: Room, event_room: Room) -> State:
    """What `dump` was given. Transactions are there by their ids; what was in them is not."""
    quotas, generation, sequence, domains, connections, special, nodes = msgspec.msgpack.decode(snapshot)
    state = State(room, event_room, Quotas(*quotas))
    state.domains = {domid: Domain(*fields) for domid, *fields in domains}
    state.special = {name: _permissions(entries) for name, entries in special}
    _load_nodes(state.tree, nodes)
    state.tree.generation = generation
    for each in connections:
        _load_connection(state, each)
    state.watches.sequence = sequence
    _load_causes(state)
    return state


def _load_nodes(tree: Tree, nodes: list[list[Any]]) -> None:
    above: list[tuple[bytes, Node, int]] = []  # path, node, how many children are still to come
    for name, value, permissions, generation, children in nodes:
        node = Node(value, _permissions(permissions), 0)
        path = b"/"
        if above:
            parent_path, parent, left = above.pop()
            parent.add_child(name)
            path = child_of(parent_path, name)
            if left > 1:
                above.append((parent_path, parent, left - 1))
        tree.place(path, node)
        node.generation = generation
        if children:
            above.append((path, node, children))


def _load_connection(state: State, fields: list[Any]) -> None:
    number, domid, last, watches, transactions, next_transaction, events, next_event, overdue = fields
    connection = state.connections[number] = Connection(number, domid)
    state.room.used += CONNECTION_BYTES
    connection.last = tuple(last) if last else None
    for path, token, cut, age in watches:
        watch = connection.watches[path, token] = Watch(number, path, token, cut, age)
        state.watches.add(watch)
    for tx_id in transactions:
        connection.transactions[tx_id] = Transaction(state.tree, 0)
    connection.next_transaction = next_transaction
    for event_number, body, cause in events:
        event = Event(event_number, body, tuple(cause))
        connection.restore(event)
        state.event_room.used += event.weight()
    connection.next_event = next_event
    connection.overdue = overdue


def _load_causes(state: State) -> None:
    for connection in state.connections.values():
        for event in connection.events:
            if cause := state.connections.get(event.cause[0]):
                cause.unsettled[event.cause[1]] = cause.unsettled.get(event.cause[1], 0) + 1
