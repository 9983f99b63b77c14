"""xenstore: what each request of a client does, decided without clock, files or sockets.

The semantics are those of Xen's xenstored (`docs/misc/xenstore.txt`); the answers are compared with those of the C one,
4.17, in `tests/drivers/store`. What a request changes is in the journal before `request` returns. The journal holds the
requests that changed something, not what they changed: a successor begins with the snapshot and executes them again, so
everything in here depends on nothing but the state and the request. Only a transaction's end is there as what it came
to, since what was done in it is not journaled.
"""

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from drivers.store.commits import Commits
from drivers.store.connection import Connection
from drivers.store.domains import Domains
from drivers.store.errors import E2BIG, EACCES, EINVAL, EIO, ENOENT, ENOSPC, ENOSYS, Refused
from drivers.store.events import NOBODY, Events
from drivers.store.journal import Journal
from drivers.store.paths import is_valid
from drivers.store.permissions import Permissions
from drivers.store.quotas import Quotas, Room
from drivers.store.requests import CHANGING, HANDLERS, OUTSIDE, PRIVILEGED, Requests
from drivers.store.state import State, dump, load, node_of, plain
from drivers.store.transactions import Change, Transaction
from drivers.store.tree import NODE_BYTES, PERMISSION_BYTES, Node
from kernel.abi.io.xs_wire import OPS, PAYLOAD_MAX, Op

__all__ = ["Store"]


class Kind(enum.IntEnum):
    """What a record is of. Each is [deliveries since the one before or nil, kind, arguments…]."""

    REQUEST, CONNECT, DISCONNECT, INTRODUCE, RELEASE, PUT, END = range(7)


RECORD_BYTES = 64
"""A record of a request beside its body, at most."""

_encode = msgspec.msgpack.Encoder().encode


class Store:
    """The store that a journal holds: fresh, or as a predecessor left it.

    A recovered one keeps the quotas it had. Each connection has its number, never used again, and numbers its requests
    from 1 upwards. Raises JournalBroken.
    """

    def __init__(self, journal: Journal, quotas: Quotas | None = None) -> None:
        self._journal = journal
        self._delivered: dict[int, int] = {}
        """What `event_sent` said since the last record."""
        self._replaying = False
        records = journal.read()
        self._state = _state_of(records, journal.half_bytes, quotas)
        self._tree = self._state.tree
        self.connections: Mapping[int, Connection] = self._state.connections
        self._events = Events(self._state)
        self._domains = Domains(self._state, self._events)
        self._requests = Requests(self._state, self._events, self._domains)
        self._commits = Commits(self._state, self._events)
        self._replay(records[1:])
        self._rotate()

    # What the acting part says and asks

    def connect(self, connection: int, domid: int) -> None:
        """A client of this domain is there, which so is known. Again for one that is known: no effect."""
        if connection not in self.connections:
            self._keep(Kind.CONNECT, connection, domid)
            self._domains.connect(connection, domid)

    def disconnect(self, connection: int) -> None:
        """It is gone, and its watches, transactions and events with it. No effect if it is not known."""
        if connection in self.connections:
            self._keep(Kind.DISCONNECT, connection)
            self._domains.disconnect(connection)

    def introduce(self, domid: int, generation: int = 0) -> None:
        """A domain has its part in xenstore from now on: `@introduceDomain` fires. No effect if it has it already; but
        one of another generation is gone."""
        domain = self._state.domains.get(domid)
        if domid and domain is not None and domain.introduced and domain.generation != generation:
            self.release(domid)
            domain = None
        if domain is None or not domain.introduced:
            self._keep(Kind.INTRODUCE, domid, generation)
            self._domains.introduce(domid, generation)

    def reconcile(self, generations: Mapping[int, int]) -> None:
        """These domains are there, in these generations, and no others."""
        for domid, domain in list(self._state.domains.items()):
            if domain.introduced and domid not in generations:
                self.release(domid)
        for domid, generation in generations.items():
            self.introduce(domid, generation)

    def release(self, domid: int) -> None:
        """A domain is gone: with it go its connections, its nodes with all that is below them, and what others'
        permissions gave it; then `@releaseDomain` fires. No effect if it is not known."""
        if domid in self._state.domains and domid != 0:
            self._keep(Kind.RELEASE, domid)
            self._domains.release(domid)

    def put(self, nodes: Mapping[bytes, bytes | None], permissions: Permissions | None = None) -> None:
        """On behalf of Dom0: write these nodes, or remove them (None) with all below, in one step; then watches fire.

        `permissions`: those of each node written and of each made for it, as `((owner, NONE), (reader, READ))`; None:
        as they are, or their parents'. A domain named there is known from now on. Raises Refused, with nothing changed:
        EINVAL for a path that no node may have, ENOSPC where there is no room.
        """
        if not all(is_valid(path) for path in nodes) or b"/" in nodes:
            raise Refused(EINVAL)
        written = {path: value for path, value in nodes.items() if value is not None}
        more = NODE_BYTES + PERMISSION_BYTES * len(permissions or ())
        self._state.room.need(sum(len(path) + len(value) + more * path.count(b"/") for path, value in written.items()))
        self._keep(Kind.PUT, list(nodes.items()), permissions)
        self._commits.put(nodes.items(), permissions)

    def request(self, connection: int, number: int, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        """The reply's op and body: a refusal is `(Op.ERROR, b"ENOENT\\0")`. Raises nothing, whatever a client sends.

        A connection that is not known, or no more, gets EIO.
        """
        client = self._state.connections.get(connection)
        try:
            if client is None:
                raise Refused(EIO)
            return self._execute(client, number, op, tx_id, body)
        except Refused as refused:
            return Op.ERROR, refused.body

    def last(self, connection: int) -> tuple[int, int, bytes] | None:
        """Number, reply op and reply body of its last request that changed something; None if there is none."""
        client = self.connections.get(connection)
        return client.last if client else None

    def next_event(self, connection: int) -> tuple[int, bytes] | None:
        """The oldest watch event that it has not been sent yet: number (1, 2, …) and body."""
        client = self.connections.get(connection)
        return client.events[0][:2] if client and client.events else None

    def event_sent(self, connection: int, number: int) -> None:
        """All events up to this one are delivered. A recovery may offer them again, by the same numbers, unless
        something was journaled since."""
        client = self.connections.get(connection)
        if client and client.events and client.events[0].number <= number:
            self._delivered[connection] = number
            self._events.settle(client, number)

    def take_woken(self) -> set[int]:
        """The connections that have got events since the last call; after a recovery, all that have any."""
        woken, self._events.woken = self._events.woken, set()
        return woken

    def overdue(self) -> set[int]:
        """Those that left more events unread than anybody may: they have lost events, and are to be closed."""
        return {number for number, client in self.connections.items() if client.overdue}

    def may_ask(self, connection: int) -> bool:
        """Whether another request may be read from it: not while others have not been sent what too many of its
        requests have fired. Always for Dom0's."""
        client = self.connections.get(connection)
        return client is None or not client.domid or len(client.unsettled) < self._state.quotas.outstanding

    def nodes(self) -> Mapping[bytes, Node]:
        """All that everybody sees, for who looks at the whole of it. Not to be changed."""
        return self._tree.nodes

    def weight(self) -> tuple[int, int]:
        """Bytes that events, and all else, take in a snapshot at most."""
        return self._state.event_room.used, self._state.room.used

    # The journal

    def _keep(self, kind: int, *arguments: object) -> None:
        """Journal what is going to be done, all of it at once. Raises Refused where there is no room."""
        if not self._replaying:
            record = _encode((None, kind, *arguments))
            self._make_room(len(record))
            self._append(kind, *arguments)

    def _append(self, kind: int, *arguments: object) -> None:
        if not self._replaying:
            self._journal.append(_encode((self._delivered or None, kind, *arguments)))
            self._delivered.clear()

    def _make_room(self, length: int) -> None:
        """For a record of this length, if it has to be by a snapshot. Raises Refused."""
        journal = self._journal
        length += 24 * len(self._delivered)
        if journal.left < length or journal.count > journal.few_records + len(self._tree.nodes):
            self._rotate()
            if journal.left < length:
                raise Refused(ENOSPC)

    def _rotate(self) -> None:
        """Begin anew with a snapshot, if it fits. Who recovers from it cannot know which of the events have been sent
        since: none of those may stand for one that comes later, neither there nor here, or that one would be lost."""
        if self._journal.rotate(dump(self._state)):
            self._delivered.clear()
            for client in self._state.connections.values():
                client.merge_no_more()

    def _replay(self, records: Iterable[bytes]) -> None:
        self._replaying = True
        for record in records:
            delivered, kind, *arguments = msgspec.msgpack.decode(record, strict=False)
            for connection, number in (delivered or {}).items():
                self.event_sent(connection, number)
            self._do_again(kind, arguments)
        self._replaying = False
        self._delivered.clear()
        for client in self.connections.values():
            if client.events:
                self._events.woken.add(client.number)
            for transaction in client.transactions.values():
                transaction.stale = True

    def _do_again(self, kind: int, arguments: list[Any]) -> None:
        match kind:
            case Kind.REQUEST:
                self.request(*arguments)
            case Kind.CONNECT:
                self._domains.connect(*arguments)
            case Kind.DISCONNECT:
                self._domains.disconnect(*arguments)
            case Kind.INTRODUCE:
                self._domains.introduce(*arguments)
            case Kind.RELEASE:
                self._domains.release(*arguments)
            case Kind.PUT:
                nodes, permissions = arguments
                self._commits.put(nodes, permissions and tuple((domid, may) for domid, may in permissions))
            case Kind.END:
                self._end_again(*arguments)

    # Requests

    def _execute(self, client: Connection, number: int, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        """Raises Refused, with nothing changed."""
        if not 0 <= op < OPS or ((handler := HANDLERS[op]) is None and op != Op.TRANSACTION_END):
            raise Refused(ENOSYS)
        if len(body) > PAYLOAD_MAX:
            raise Refused(E2BIG)
        if client.domid and op in PRIVILEGED:
            raise Refused(EACCES)
        transaction = None
        if tx_id and op not in OUTSIDE:
            transaction = client.transactions.get(tx_id)
            if transaction is None:
                raise Refused(ENOENT)
        if handler is None:
            return self._end(client, number, tx_id, transaction, body)
        if op in CHANGING and not self._replaying:
            self._make_room(len(body) + RECORD_BYTES)
        self._events.cause = (client.number, number) if client.domid else NOBODY
        self._requests.changed = False
        reply = handler(self._requests, client, transaction, body)
        if self._requests.changed:
            client.last = (number, op, reply)
            self._append(Kind.REQUEST, client.number, number, op, tx_id, body)
        elif len(reply) > PAYLOAD_MAX:
            raise Refused(E2BIG)
        return op, reply

    def _end(
        self, client: Connection, number: int, tx_id: int, transaction: Transaction | None, body: bytes
    ) -> tuple[int, bytes]:
        """The transaction is over whatever the reply, which says whether its changes have come to be."""
        if body not in (b"T\0", b"F\0"):
            raise Refused(EINVAL)
        if transaction is None:
            raise Refused(ENOENT)
        op, reply, changes = int(Op.TRANSACTION_END), b"OK\0", transaction.changes() if body == b"T\0" else []
        try:
            if body == b"T\0":
                self._commits.check(client, transaction, changes)
            record = [[each.path, each.node and plain(each.node), *each[2:]] for each in changes]
            self._make_room(len(_encode(record)) + RECORD_BYTES)
        except Refused as refused:
            op, reply, changes, record = int(Op.ERROR), refused.body, [], []
            self._make_room(RECORD_BYTES)
        self._append(Kind.END, client.number, number, tx_id, op, reply, record)
        self._commits.commit(client, number, tx_id, op, reply, changes)
        return op, reply

    def _end_again(
        self, connection: int, number: int, tx_id: int, op: int, reply: bytes, record: list[list[Any]]
    ) -> None:
        changes = [
            Change(path, fields and node_of(fields), fires, exact, old and tuple((domid, may) for domid, may in old))
            for path, fields, fires, exact, old in record
        ]
        self._commits.commit(self._state.connections[connection], number, tx_id, op, reply, changes)


def _state_of(records: list[bytes], half_bytes: int, quotas: Quotas | None) -> State:
    """That of the snapshot, or a fresh one."""
    room, event_room = Room(half_bytes // 2), Room(half_bytes // 4)
    if records:
        return load(records[0], room, event_room)
    state = State(room, event_room, quotas or Quotas())
    state.begin()
    return state
