"""xenstore: what each request of a client does, decided without clock, files or sockets.

The semantics are those of Xen's xenstored (`docs/misc/xenstore.txt`); the answers are compared with those of the C one,
4.17, in `tests/drivers/store`. What a request changes is in the journal before `request` returns. The journal holds the
requests that changed something, not what they changed: a successor begins with the snapshot and executes them again, so
everything in here depends on nothing but the state and the request. Only a transaction's end is there as what it came
to, since what was done in it is not journaled.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from drivers.store import control
from drivers.store.connection import CONNECTION_BYTES, Connection
from drivers.store.errors import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EPERM,
    Refused,
)  # fmt: skip
from drivers.store.journal import Journal
from drivers.store.numbers import domid_of, number_of
from drivers.store.paths import child_of, domain_path, is_valid, name_of, parent_of, whole_path
from drivers.store.permissions import DEAD, OWNER, READ, WRITE, Permissions, granted, parse, render, without
from drivers.store.quotas import Quotas, Room
from drivers.store.state import Domain, State, dump, load, node_of, plain
from drivers.store.transactions import Change, Transaction
from drivers.store.tree import NODE_BYTES, PERMISSION_BYTES, Node, View, subtree
from drivers.store.watches import Watch
from kernel.abi.io.xs_wire import OPS, PAYLOAD_MAX, Op

__all__ = ["Store"]

OK: Final = b"OK\0"
DOMID_SELF = 0x7FF0

REQUEST, CONNECT, DISCONNECT, INTRODUCE, RELEASE, PUT, END = range(7)
"""What a record is of. Each is [deliveries, kind, arguments…]; deliveries: those since the record before, or nil."""

NODE_HEADER_BYTES, NODE_PERMISSION_BYTES = 24, 8
"""What the C xenstored takes for a node, as its size is bounded."""

_encode = msgspec.msgpack.Encoder().encode


class Store:
    """The store that a journal holds: fresh, or as a predecessor left it.

    A recovered one keeps the quotas it had. Each connection has its number, never used again, and numbers its requests
    from 1 upwards. Raises JournalBroken.
    """

    def __init__(self, journal: Journal, quotas: Quotas | None = None) -> None:
        self._journal = journal
        self._woken: set[int] = set()
        self._changed = False
        self._cause = (0, 0)
        self._delivered: dict[int, int] = {}
        self._replaying = False
        room, event_room = Room(journal.half_bytes // 2), Room(journal.half_bytes // 4)
        records = journal.read()
        if records:
            self._state = load(records[0], room, event_room)
            self._replay(records[1:])
        else:
            self._state = State(room, event_room, quotas or Quotas())
            self._state.begin()
        self._tree = self._state.tree
        self.connections: Mapping[int, Connection] = self._state.connections
        self._rotate()

    # What the acting part says and asks

    def connect(self, connection: int, domid: int) -> None:
        """A client of this domain is there, which so is known. Again for one that is known: no effect."""
        if connection not in self.connections:
            self._keep(CONNECT, connection, domid)
            self._connect(connection, domid)

    def disconnect(self, connection: int) -> None:
        """It is gone, and its watches, transactions and events with it. No effect if it is not known."""
        if connection in self.connections:
            self._keep(DISCONNECT, connection)
            self._disconnect(connection)

    def introduce(self, domid: int) -> None:
        """A domain has its part in xenstore from now on: `@introduceDomain` fires. No effect if it has it already."""
        domain = self._state.domains.get(domid)
        if domain is None or not domain.introduced:
            self._keep(INTRODUCE, domid)
            self._introduce(domid)

    def release(self, domid: int) -> None:
        """A domain is gone: with it go its connections, its nodes with all that is below them, and what others'
        permissions gave it; then `@releaseDomain` fires. No effect if it is not known."""
        if domid in self._state.domains and domid != 0:
            self._keep(RELEASE, domid)
            self._release(domid)

    def put(self, nodes: Mapping[bytes, bytes | None], permissions: Permissions | None = None) -> None:
        """On behalf of Dom0: write these nodes, or remove them (None) with all below, in one step; then watches fire.

        `permissions`: those of each node written and of each made for it, as `((owner, NONE), (reader, READ))`; None:
        as they are, or their parents'. A domain named there is known from now on. Raises Refused, with nothing changed:
        EINVAL for a path that no node may have, ENOSPC where there is no room.
        """
        if not all(is_valid(path) for path in nodes) or b"/" in nodes:
            raise Refused(EINVAL)
        added = [len(permissions or ()) * PERMISSION_BYTES + NODE_BYTES] * sum(path.count(b"/") for path in nodes)
        self._state.room.need(sum(added) + sum(len(path) + len(value or b"") for path, value in nodes.items()))
        self._keep(PUT, list(nodes.items()), permissions)
        self._put(nodes.items(), permissions)

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
            self._settle(client, number)

    def take_woken(self) -> set[int]:
        """The connections that have got events since the last call; after a recovery, all that have any."""
        woken, self._woken = self._woken, set()
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
        self._tree = self._state.tree
        self.connections = self._state.connections
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
                self._woken.add(client.number)
            for transaction in client.transactions.values():
                transaction.stale = True

    def _do_again(self, kind: int, arguments: list[Any]) -> None:
        match kind:
            case 0:
                self.request(*arguments)
            case 1:
                self._connect(*arguments)
            case 2:
                self._disconnect(*arguments)
            case 3:
                self._introduce(*arguments)
            case 4:
                self._release(*arguments)
            case 5:
                nodes, permissions = arguments
                self._put(nodes, permissions and tuple((domid, may) for domid, may in permissions))
            case 6:
                self._end_again(*arguments)

    # Requests

    def _execute(self, client: Connection, number: int, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        """Raises Refused, with nothing changed."""
        handler = HANDLERS[op] if 0 <= op < OPS else None
        if handler is None:
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
        if op == Op.TRANSACTION_END:
            return self._end(client, number, tx_id, transaction, body)
        if op in CHANGING and not self._replaying:
            self._make_room(len(body) + RECORD_BYTES)
        self._cause = (client.number, number) if client.domid else (0, 0)
        self._changed = False
        reply = handler(self, client, transaction, body)
        if self._changed:
            client.last = (number, op, reply)
            self._append(REQUEST, client.number, number, op, tx_id, body)
        elif len(reply) > PAYLOAD_MAX:
            raise Refused(E2BIG)
        return op, reply

    def _may(self, client: Connection, permissions: Permissions) -> int:
        if not client.domid:
            return READ | WRITE | OWNER
        domain = self._state.domains.get(client.domid)
        return granted(permissions, client.domid, domain.target if domain else None)

    def _find(self, client: Connection, view: View, path: bytes, wanted: int) -> Node | None:
        """The node, if there is one. Raises Refused: EINVAL, or EACCES, also to hide from the client that there is
        none where not even the nearest node above would let it."""
        if path not in self._tree.nodes and not is_valid(path, self._state.quotas.path):
            raise Refused(EINVAL)
        node = view.get(path)
        if node is not None and (not client.domid or self._may(client, node.permissions) & wanted == wanted):
            return node
        if client.domid or view is not self._tree:
            above = path
            while (parent := view.get(above := parent_of(above))) is None:
                pass
            if node is not None or not self._may(client, parent.permissions) & wanted:
                raise Refused(EACCES)
        return None

    def _there(self, client: Connection, transaction: Transaction | None, path: bytes, wanted: int) -> Node:
        node = self._find(client, transaction or self._tree, path, wanted)
        if node is None:
            raise Refused(ENOENT)
        return node

    def _read(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        return self._there(client, transaction, _one_path(client, body), READ).value

    def _directory(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        return _names(self._there(client, transaction, _one_path(client, body), READ))

    def _directory_part(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        """Generation and names from an offset on, as many as fit; an empty name behind the last one."""
        if body.count(b"\0") != 2:
            raise Refused(EINVAL)
        path, offset_text, _ = body.split(b"\0")
        node = self._there(client, transaction, whole_path(client.domid, path), READ)
        generation = b"%d\0" % node.generation
        names, offset = _names(node), number_of(offset_text)
        if not 0 <= offset < len(names):
            return generation + b"\0"
        end = offset + PAYLOAD_MAX - len(generation) - 1
        if len(names) <= end:
            return b"%s%s\0" % (generation, names[offset:])
        return generation + names[offset : names.rfind(b"\0", offset, end) + 1]

    def _get_perms(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        return render(self._there(client, transaction, _one_path(client, body), READ).permissions)

    def _write(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        name, nul, value = body.partition(b"\0")
        if not nul:
            raise Refused(EINVAL)
        path, view = whole_path(client.domid, name), transaction or self._tree
        node = self._find(client, view, path, WRITE)
        if node is None:
            node = self._create(client, transaction, path, value)
        else:
            self._check_size(client, transaction, node, len(value) - len(node.value))
            if transaction is None:
                self._state.room.need(len(value) - len(node.value))
            view.write(path, node, value)
        self._fire(transaction, path, False, node)
        return OK

    def _mkdir(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        path = _one_path(client, body)
        if self._find(client, transaction or self._tree, path, WRITE) is None:
            self._fire(transaction, path, False, self._create(client, transaction, path, b""))
        return OK

    def _create(self, client: Connection, transaction: Transaction | None, path: bytes, value: bytes) -> Node:
        """A node that is not there, and what is missing above it. Raises Refused."""
        view: View = transaction or self._tree
        missing, above = [path], parent_of(path)
        while (parent := view.get(above)) is None:
            missing.append(above)
            above = parent_of(above)
        permissions = parent.permissions
        if client.domid:
            permissions = ((client.domid, permissions[0][1]), *permissions[1:])
            if self._tree.owned.get(client.domid, 0) + len(missing) > self._state.quotas.nodes:
                raise Refused(ENOSPC)
            self._check_size(client, transaction, Node(value, permissions, 0), 0)
            for each in missing:
                holder = parent if each is missing[-1] else Node(b"", permissions, 0)
                self._check_size(client, transaction, holder, len(name_of(each)) + 1)
        if transaction is None:
            more = NODE_BYTES + PERMISSION_BYTES * len(permissions)
            self._state.room.need(len(value) + sum(len(each) + more for each in missing))
        for each in reversed(missing[1:]):
            view.add(each, b"", permissions)
        return view.add(path, value, permissions)

    def _check_size(self, client: Connection, transaction: Transaction | None, node: Node, more: int) -> None:
        """Raises Refused if a domain made a node too large, and fails the transaction."""
        if client.domid:
            header = NODE_HEADER_BYTES + NODE_PERMISSION_BYTES * len(node.permissions)
            if header + len(node.value) + node.names_bytes + more >= self._state.quotas.node_size:
                if transaction:
                    transaction.failed = True
                raise Refused(ENOSPC)

    def _rm(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        path, view = _one_path(client, body), transaction or self._tree
        node = self._find(client, view, path, WRITE)
        if node is not None and path == b"/":
            raise Refused(EINVAL)
        parent = view.get(parent_of(path))
        if node is not None:
            self._remove(transaction, path, node)
        elif parent is None:
            raise Refused(ENOENT)
        return OK

    def _remove(self, transaction: Transaction | None, root: bytes, node: Node) -> None:
        """Watches of each node fire, and those above the root once."""
        view: View = transaction or self._tree
        for path, each in list(subtree(view, root, node)):
            self._fire(transaction, path, path != root, each)
            view.remove(path)

    def _set_perms(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        name, *strings = body.split(b"\0")[:-1] or [b""]
        if not strings:
            raise Refused(EINVAL)
        if client.domid and len(strings) > self._state.quotas.permissions:
            raise Refused(ENOSPC)
        permissions = self._living(parse(strings))
        if name.startswith(b"@"):
            return self._set_special(client, name, permissions)
        path, view = whole_path(client.domid, name), transaction or self._tree
        node = self._there(client, transaction, path, WRITE | OWNER)
        old = node.permissions
        if client.domid and permissions[0][0] != old[0][0]:
            raise Refused(EPERM)
        self._check_size(client, transaction, node, NODE_PERMISSION_BYTES * (len(permissions) - len(old)))
        if transaction is None:
            self._state.room.need(PERMISSION_BYTES * (len(permissions) - len(old)))
        view.set_permissions(path, node, permissions)
        self._fire(transaction, path, False, node, old)
        return OK

    def _living(self, permissions: Permissions) -> Permissions:
        """Those for domains that are not there are dead. Raises Refused if the owner is one."""
        domains = self._state.domains
        if permissions[0][0] not in domains:
            raise Refused(ENOENT)
        return tuple((domid, may if domid in domains else may | DEAD) for domid, may in permissions)

    def _set_special(self, client: Connection, name: bytes, permissions: Permissions) -> bytes:
        """Who hears of `@introduceDomain` or `@releaseDomain`. Not part of a transaction."""
        old = self._state.special.get(name)
        if old is None:
            raise Refused(EINVAL)
        if self._may(client, old) & (WRITE | OWNER) != WRITE | OWNER:
            raise Refused(EACCES)
        self._state.special[name] = permissions
        self._changed = True
        return OK

    # Watches and events

    def _watch(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        name, token, path = _path_and_token(client, body)
        if name.startswith(b"@"):
            if len(name) > self._state.quotas.path:
                raise Refused(EINVAL)
        elif not is_valid(path, self._state.quotas.path):
            raise Refused(EINVAL)
        if (path, token) in client.watches:
            raise Refused(EEXIST)
        state = self._state
        if client.domid and sum(len(each.watches) for each in self._of(client.domid)) >= state.quotas.watches:
            raise Refused(E2BIG)
        cut = len(path) - len(name)
        watch = Watch(client.number, path, token, cut, state.watches.sequence + 1)
        state.room.need(watch.weight())
        state.watches.sequence += 1
        client.watches[path, token] = watch
        state.watches.add(watch)
        self._changed = True
        self._queue(client, watch.event(path), (0, 0))
        return OK

    def _unwatch(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        _, token, path = _path_and_token(client, body)
        watch = client.watches.pop((path, token), None)
        if watch is None:
            raise Refused(ENOENT)
        self._state.watches.remove(watch)
        self._changed = True
        return OK

    def _reset_watches(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        self._forget_watches(client)
        client.transactions.clear()
        self._changed = True
        return OK

    def _forget_watches(self, client: Connection) -> None:
        for watch in client.watches.values():
            self._state.watches.remove(watch)
        client.watches.clear()

    def _fire(
        self,
        transaction: Transaction | None,
        path: bytes,
        exact: bool,
        node: Node | None,
        old: Permissions | None = None,
    ) -> None:
        """The node has changed: at once, or at the end of the transaction."""
        if transaction is not None:
            transaction.fire(path, exact)
            return
        self._changed = True
        if self._state.watches:
            for watch in self._state.watches.of(path, exact):
                client = self._state.connections[watch.connection]
                if self._may_hear(client, path, node, old):
                    self._queue(client, watch.event(path), self._cause)

    def _may_hear(self, client: Connection, path: bytes, node: Node | None, old: Permissions | None) -> bool:
        """Who could read the node, or can, or can read its parent."""
        if old is not None and self._may(client, old) & READ:
            return True
        if node is None:
            return False
        if self._may(client, node.permissions) & READ:
            return True
        parent = self._tree.get(parent_of(path))
        return parent is not None and bool(self._may(client, parent.permissions) & READ)

    def _fire_special(self, name: bytes) -> None:
        permissions = self._state.special[name]
        for watch in self._state.watches.of(name, exact=True):
            client = self._state.connections[watch.connection]
            if self._may(client, permissions) & READ:
                self._queue(client, watch.event(name), (0, 0))

    def _queue(self, client: Connection, body: bytes, cause: tuple[int, int]) -> None:
        if client.overdue or len(body) > PAYLOAD_MAX:
            return
        event = client.queue(body, cause)
        if event is None:
            return
        self._woken.add(client.number)
        room = self._state.event_room
        room.used += event.weight()
        if cause[0]:
            unsettled = self._state.connections[cause[0]].unsettled
            unsettled[cause[1]] = unsettled.get(cause[1], 0) + 1
        if client.queued_bytes > room.limit >> (3 if client.domid else 1):
            self._give_up(client)
        elif room.used > room.limit:
            self._give_up(max(self._state.connections.values(), key=lambda each: (each.queued_bytes, each.number)))

    def _give_up(self, client: Connection) -> None:
        """It does not read: it must not cost the others anything."""
        self._settle(client, client.next_event)
        self._forget_watches(client)
        client.overdue = True
        self._woken.add(client.number)

    def _settle(self, client: Connection, number: int) -> None:
        """Its events up to this one wait no more, and who caused them does not either."""
        while client.events and client.events[0].number <= number:
            event = client.take_event()
            self._state.event_room.used -= event.weight()
            cause = self._state.connections.get(event.cause[0])
            if cause is not None:
                cause.unsettled[event.cause[1]] -= 1
                if not cause.unsettled[event.cause[1]]:
                    del cause.unsettled[event.cause[1]]

    # Transactions

    def _start(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        if transaction is not None:
            raise Refused(EBUSY)
        quotas = self._state.quotas
        open_ones = sum(len(each.transactions) for each in self._of(client.domid)) if client.domid else 0
        if client.domid and open_ones >= quotas.transactions:
            raise Refused(ENOSPC)
        tx_id = client.transaction_id()
        client.transactions[tx_id] = Transaction(self._tree, quotas.transaction_nodes if client.domid else 0)
        self._changed = True
        return b"%d\0" % tx_id

    def _end(
        self, client: Connection, number: int, tx_id: int, transaction: Transaction | None, body: bytes
    ) -> tuple[int, bytes]:
        """The transaction is over whatever the reply, which says whether its changes have come to be."""
        if body not in (b"T\0", b"F\0"):
            raise Refused(EINVAL)
        if transaction is None:
            raise Refused(ENOENT)
        op, reply, changes = int(Op.TRANSACTION_END), OK, transaction.changes() if body == b"T\0" else []
        try:
            if body == b"T\0":
                self._check_end(client, transaction, changes)
            record = [[each.path, each.node and plain(each.node), *each[2:]] for each in changes]
            self._make_room(len(_encode(record)) + RECORD_BYTES)
        except Refused as refused:
            op, reply, changes, record = int(Op.ERROR), refused.body, [], []
            self._make_room(RECORD_BYTES)
        self._append(END, client.number, number, tx_id, op, reply, record)
        self._commit(client, number, tx_id, op, reply, changes)
        return op, reply

    def _check_end(self, client: Connection, transaction: Transaction, changes: list[Change]) -> None:
        """Raises Refused if the changes cannot be."""
        if transaction.failed:
            raise Refused(ENOMEM)
        if transaction.conflicts():
            raise Refused(EAGAIN)
        grown: dict[int, int] = {}
        more = 0
        for change in changes:
            for node, sign in ((change.node, 1), (self._tree.get(change.path), -1)):
                if node is not None:
                    grown[node.permissions[0][0]] = grown.get(node.permissions[0][0], 0) + sign
                    more += sign * (len(change.path) + node.weight())
        self._state.room.need(more)
        for domid, count in grown.items() if client.domid else ():
            if domid and count > 0 and self._tree.owned.get(domid, 0) + count > self._state.quotas.nodes:
                raise Refused(ENOSPC)

    def _end_again(
        self, connection: int, number: int, tx_id: int, op: int, reply: bytes, record: list[list[Any]]
    ) -> None:
        changes = [
            Change(path, fields and node_of(fields), fires, exact, old and tuple((domid, may) for domid, may in old))
            for path, fields, fires, exact, old in record
        ]
        self._commit(self._state.connections[connection], number, tx_id, op, reply, changes)

    def _commit(
        self, client: Connection, number: int, tx_id: int, op: int, reply: bytes, changes: list[Change]
    ) -> None:
        del client.transactions[tx_id]
        client.last = (number, op, reply)
        self._cause = (client.number, number) if client.domid else (0, 0)
        for path, node, fires, exact, old in changes:
            self._tree.place(path, node)
            if fires:
                self._fire(None, path, exact, node, old)

    # Domains and connections

    def _of(self, domid: int) -> list[Connection]:
        return [each for each in self._state.connections.values() if each.domid == domid]

    def _connect(self, connection: int, domid: int) -> None:
        self._state.domains.setdefault(domid, Domain())
        self._state.connections[connection] = Connection(connection, domid)
        self._state.room.used += CONNECTION_BYTES

    def _disconnect(self, connection: int) -> None:
        client = self._state.connections[connection]
        self._forget_watches(client)
        self._settle(client, client.next_event)
        del self._state.connections[connection]
        self._state.room.used -= CONNECTION_BYTES
        self._woken.discard(connection)
        self._delivered.pop(connection, None)

    def _introduce(self, domid: int) -> None:
        self._state.domains.setdefault(domid, Domain()).introduced = True
        self._fire_special(b"@introduceDomain")

    def _release(self, domid: int) -> None:
        for client in self._of(domid):
            self._disconnect(client.number)
        introduced = self._state.domains.pop(domid).introduced
        for domain in self._state.domains.values():
            if domain.target == domid:
                domain.target = None
        self._cause = (0, 0)
        if self._tree.owned.get(domid):
            self._remove_owned(domid)
        for node in self._tree.nodes.values():
            node.permissions = without(node.permissions, domid)
        for name, permissions in self._state.special.items():
            owner = (0 if permissions[0][0] == domid else permissions[0][0], permissions[0][1])
            self._state.special[name] = (owner, *(each for each in permissions[1:] if each[0] != domid))
        for client in self._state.connections.values():
            for transaction in client.transactions.values():
                transaction.domain_gone(domid)
        if introduced:
            self._fire_special(b"@releaseDomain")

    def _remove_owned(self, domid: int) -> None:
        """Its nodes and what is below them, in the tree's order."""
        stack = [b"/"]
        while stack and self._tree.owned.get(domid):
            path = stack.pop()
            node = self._tree.nodes[path]
            if node.permissions[0][0] == domid and path != b"/":
                self._remove(None, path, node)
            else:
                stack += [child_of(path, name) for name in reversed(node.children)]

    def _introduce_op(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        """domid, frame, port: the latter two mean nothing here. Again for a domain that has it: it begins anew."""
        strings = body.split(b"\0")[:-1]
        if len(strings) < 3 or number_of(strings[2]) <= 0:
            raise Refused(EINVAL)
        domid = domid_of(strings[0])
        domain = self._state.domains.get(domid)
        self._changed = True
        if domain is None or not domain.introduced:
            self._introduce(domid)
        for each in self._of(domid) if domid else ():
            self._forget_watches(each)
            self._settle(each, each.next_event)
            each.transactions.clear()
        return OK

    def _introduced(self, body: bytes) -> int:
        """The domid, of a domain that has its part in xenstore and is not Dom0. Raises Refused."""
        domid = domid_of(_one(body))
        if not domid:
            raise Refused(EINVAL)
        domain = self._state.domains.get(domid)
        if domain is None or not domain.introduced:
            raise Refused(ENOENT)
        return domid

    def _release_op(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        domid = self._introduced(body)
        self._changed = True
        self._release(domid)
        return OK

    def _resume(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        self._introduced(body)
        return OK

    def _set_target(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        strings = body.split(b"\0")[:-1]
        if len(strings) < 2:
            raise Refused(EINVAL)
        pair = [self._state.domains.get(domid_of(each)) for each in strings[:2]]
        if not all(each and each.introduced for each in pair):
            raise Refused(ENOENT)
        self._state.domains[domid_of(strings[0])].target = domid_of(strings[1])
        self._changed = True
        return OK

    def _get_domain_path(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        return domain_path(domid_of(_one(body))) + b"\0"

    def _is_domain_introduced(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        domid = domid_of(_one(body))
        domain = self._state.domains.get(domid)
        return b"T\0" if domid == DOMID_SELF or (domain and domain.introduced) else b"F\0"

    def _control(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        reply, self._changed = control.answer(self._state, body)
        return reply

    def _put(self, nodes: Iterable[tuple[bytes, bytes | None]], permissions: Permissions | None) -> None:
        self._cause = (0, 0)
        for domid, _ in permissions or ():
            self._state.domains.setdefault(domid, Domain())
        view = Transaction(self._tree, 0)
        for path, value in nodes:
            self._put_one(view, path, value, permissions)
        for change in view.changes():
            self._tree.place(change.path, change.node)
            if change.fires:
                self._fire(None, change.path, change.exact, change.node, change.old)

    def _put_one(self, view: Transaction, path: bytes, value: bytes | None, permissions: Permissions | None) -> None:
        missing, above = [path], path
        while (node := view.get(above)) is None:
            missing.append(above)
            above = parent_of(above)
        if value is None:
            if above == path:
                self._remove(view, path, node)
            return
        inherited = permissions or node.permissions
        for each in reversed(missing[1:]):
            view.add(each, b"", inherited)
        if (written := view.get(path)) is not None:
            view.write(path, written, value)
            view.set_permissions(path, written, permissions or written.permissions)
        view.fire(path, False)


def _one(body: bytes) -> bytes:
    """The only string, which a NUL ends. Raises Refused."""
    if body.find(b"\0") != len(body) - 1 or not body:
        raise Refused(EINVAL)
    return body[:-1]


def _one_path(client: Connection, body: bytes) -> bytes:
    return whole_path(client.domid, _one(body))


def _path_and_token(client: Connection, body: bytes) -> tuple[bytes, bytes, bytes]:
    """The path as it is there, the token, and the whole path. Raises Refused."""
    strings = body.split(b"\0")
    if len(strings) != 3:
        raise Refused(EINVAL)
    return strings[0], strings[1], whole_path(client.domid, strings[0])


def _names(node: Node) -> bytes:
    return b"\0".join(node.children) + b"\0" if node.children else b""


Handler = Callable[[Store, Connection, Transaction | None, bytes], bytes]

HANDLERS: list[Handler | None] = [None] * OPS
HANDLERS[Op.CONTROL] = Store._control
HANDLERS[Op.DIRECTORY] = Store._directory
HANDLERS[Op.READ] = Store._read
HANDLERS[Op.GET_PERMS] = Store._get_perms
HANDLERS[Op.WATCH] = Store._watch
HANDLERS[Op.UNWATCH] = Store._unwatch
HANDLERS[Op.TRANSACTION_START] = Store._start
HANDLERS[Op.TRANSACTION_END] = Store._start  # has a way of its own
HANDLERS[Op.INTRODUCE] = Store._introduce_op
HANDLERS[Op.RELEASE] = Store._release_op
HANDLERS[Op.GET_DOMAIN_PATH] = Store._get_domain_path
HANDLERS[Op.WRITE] = Store._write
HANDLERS[Op.MKDIR] = Store._mkdir
HANDLERS[Op.RM] = Store._rm
HANDLERS[Op.SET_PERMS] = Store._set_perms
HANDLERS[Op.IS_DOMAIN_INTRODUCED] = Store._is_domain_introduced
HANDLERS[Op.RESUME] = Store._resume
HANDLERS[Op.SET_TARGET] = Store._set_target
HANDLERS[Op.RESET_WATCHES] = Store._reset_watches
HANDLERS[Op.DIRECTORY_PART] = Store._directory_part

PRIVILEGED = frozenset((Op.CONTROL, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.RESUME, Op.SET_TARGET))
OUTSIDE = frozenset((Op.WATCH, Op.UNWATCH))
"""Not of a transaction, whatever id is there."""

CHANGING = frozenset(
    (
        Op.CONTROL, Op.WATCH, Op.UNWATCH, Op.TRANSACTION_START, Op.INTRODUCE, Op.RELEASE, Op.WRITE, Op.MKDIR, Op.RM,
        Op.SET_PERMS, Op.SET_TARGET, Op.RESET_WATCHES,
    )
)  # fmt: skip

RECORD_BYTES = 64
"""A record of a request beside its body, at most."""
