"""xenstore, sans-I/O: requests in, answers out, and events that wait for their clients.

The semantics are those of Xen's store (`docs/misc/xenstore.txt`; `xenstored` 4.17 where that says nothing). What was
answered is in the journal, so that a store which is made of the same memory goes on with it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from drivers.store.journal import Full, Journal
from drivers.store.node import HEADER_BYTES, PERMISSION_BYTES, Node
from drivers.store.paths import ROOT, SPECIAL, absolute, canonical, home_of, name_of, parent_of
from drivers.store.permissions import DEAD, OWNER, READ, WRITE, Permissions, granted, inherited, pack, unpack
from drivers.store.quotas import XEN_DEFAULTS, Quotas
from drivers.store.refusal import Refusal
from drivers.store.state import Change, Connection, State, Tag, Watch
from drivers.store.transaction import Transaction
from kernel.abi.ids import Peer
from kernel.abi.io.xs_wire import PAYLOAD_MAX, Op
from kernel.abi.store_io import StoreNode

__all__ = ["Store"]

OK = b"OK\0"
INTRODUCED, RELEASED = SPECIAL
DOMID_SELF = 0x7FF0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode

_NOT_IN_TRANSACTIONS = frozenset({Op.WATCH, Op.UNWATCH})
_FOR_DOM0 = frozenset(
    {Op.INTRODUCE, Op.RELEASE, Op.RESUME, Op.SET_TARGET, Op.IS_DOMAIN_INTRODUCED, Op.CONTROL}
)

_NUMBER = re.compile(rb"[ \t\n]*[+-]?[0-9]{1,10}").match

Answer = tuple[bytes, list[Change]]
"""An answer's body, and what the request changes. With no changes it is not journaled."""


class Store:
    """The tree, its watches and transactions, and the domains that it knows."""

    def __init__(self, journal: Journal, quotas: Quotas = XEN_DEFAULTS) -> None:
        self._journal = journal
        self._quotas = quotas
        self._state = State()
        for record in journal.records():
            self._state.apply(_decode(record))
        for connection in self._state.connections.values():
            connection.mergeable.clear()
        self._acts: dict[int, Callable[[_Request], Answer]] = {
            Op.CONTROL: self._control,
            Op.DIRECTORY: self._directory,
            Op.DIRECTORY_PART: self._directory_part,
            Op.READ: self._read,
            Op.GET_PERMS: self._get_perms,
            Op.SET_PERMS: self._set_perms,
            Op.WATCH: self._watch,
            Op.UNWATCH: self._unwatch,
            Op.RESET_WATCHES: self._reset_watches,
            Op.TRANSACTION_START: self._begin,
            Op.TRANSACTION_END: self._end,
            Op.WRITE: self._write,
            Op.MKDIR: self._mkdir,
            Op.RM: self._rm,
            Op.INTRODUCE: self._introduce,
            Op.RELEASE: self._release,
            Op.RESUME: self._resume,
            Op.SET_TARGET: self._set_target,
            Op.IS_DOMAIN_INTRODUCED: self._is_introduced,
            Op.GET_DOMAIN_PATH: self._domain_path,
        }

    # ---- clients ----

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return len(self._state.nodes)

    @property
    def connections(self) -> Mapping[int, Connection]:
        return self._state.connections

    def connect(self, connection: int, domid: int) -> None:
        """A client. One that is known stays as it is."""
        if connection not in self._state.connections:
            self._commit([(Tag.CONNECTED, connection, domid)])

    def disconnect(self, connection: int) -> None:
        """It has gone, and with it its watches, transactions and events."""
        if connection in self._state.connections:
            self._commit([(Tag.DISCONNECTED, connection)])

    def request(self, connection: int, number: int, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        """Do what a client asks: the answer's operation and body. Its `number`s grow.

        Whatever it asks, it gets an answer; what that says is done is journaled.
        """
        client = self._state.connections[connection]
        try:
            act = self._acts.get(op)
            if act is None:
                raise Refusal("ENOSYS")
            if client.domid and op in _FOR_DOM0:
                raise Refusal("EACCES")
            request = _Request(client, connection, tx_id, body, self._state)
            if tx_id and op not in _NOT_IN_TRANSACTIONS:
                request.enter()
                if client.domid and op != Op.TRANSACTION_END:
                    self._check_seen(request)
            answer, changes = act(request)
        except Refusal as refusal:
            op, answer, changes = Op.ERROR, refusal.body, [*refusal.changes]
        if changes:
            try:
                self._commit([*changes, (Tag.ANSWERED, connection, number, op, answer)])
            except Full:
                return Op.ERROR, b"ENOSPC\0"
        return op, answer

    def last(self, connection: int) -> tuple[int, int, bytes] | None:
        """Number, operation and answer of its last request that changed something."""
        return self._state.connections[connection].answered

    def events(self, connection: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Its oldest events with numbers above `after`; they count as shown to it from now on."""
        client = self._state.connections[connection]
        found: list[tuple[int, bytes]] = []
        for number, body in client.events:
            if len(found) >= limit:
                break
            if number > after:
                found.append((number, body))
                if client.mergeable.get(body) == number:
                    del client.mergeable[body]
        return found

    def event_sent(self, connection: int, number: int) -> int:
        """It has all events up to this one: the number, or that of the last one that there was."""
        client = self._state.connections[connection]
        number = min(number, client.last_event)
        self._state.apply([(Tag.SENT, connection, number)])
        return number

    def take_woken(self) -> set[int]:
        """Who has got events since this was last asked."""
        woken = self._state.woken
        if woken:
            self._state.woken = set()
        return woken

    # ---- the hypervisor ----

    def reconcile(self, peers: Iterable[Peer]) -> None:
        """These domains are there, and no others."""
        there: dict[int, int] = {peer.domid: peer.generation for peer in peers}
        for domid, generation in list(self._state.domains.items()):
            if there.get(domid) != generation:
                self._forget(domid)
        for peer in peers:
            self.introduce(peer)

    def introduce(self, peer: Peer) -> None:
        """A domain has come. One of another generation is gone."""
        known = self._state.domains.get(peer.domid)
        if known == peer.generation:
            return
        if known is not None:
            self._forget(peer.domid)
        self._commit([(Tag.INTRODUCED, peer.domid, peer.generation), *self._fire_special(INTRODUCED)])

    def release(self, peer: Peer) -> None:
        """A domain is gone: what it owned, and what it was allowed."""
        if self._state.domains.get(peer.domid) == peer.generation:
            self._forget(peer.domid)

    def put(self, nodes: Sequence[StoreNode]) -> None:
        """What the hypervisor knows, in one step. What is so already stays, and nobody is told of it."""
        changes: list[Change] = []
        transaction = Transaction(self._state.nodes)
        for node in nodes:
            path = node.path.encode()
            there = transaction.get(path)
            if node.value is None:
                if there is not None:
                    _fire_removal(transaction, path)
                    transaction.remove(path)
            elif there is None:
                _make(transaction, path, node.value.encode(), 0, _permissions_of(node))
            elif there.value != node.value.encode():
                transaction.node(path, node.value.encode(), there.permissions)
                transaction.fired[path] = False
        changes = self._merged(transaction)
        if changes:
            self._commit(changes)

    def _forget(self, domid: int) -> None:
        """What it owned goes with all below it; elsewhere it is not named any more."""
        state = self._state
        transaction = Transaction(state.nodes)
        for path in list(state.owned.get(domid, ())):
            node = transaction.get(path)
            if node is None:
                continue
            if node.permissions[0][0] == domid:
                _fire_removal(transaction, path)
                transaction.remove(path)
            else:
                dead = tuple((each, bits | DEAD if each == domid else bits) for each, bits in node.permissions)
                transaction.node(path, node.value, dead)
        changes = self._merged(transaction)
        self._commit([*changes, (Tag.RELEASED, domid), *self._fire_special(RELEASED)])

    # ---- reading ----

    def _read(self, request: "_Request") -> Answer:
        _, node = request.node(request.only_word(), READ)
        return node.value, []

    def _directory(self, request: "_Request") -> Answer:
        _, node = request.node(request.only_word(), READ)
        names = b"".join(name + b"\0" for name in node.children)
        if len(names) > PAYLOAD_MAX:
            raise Refusal("E2BIG")
        return names, []

    def _directory_part(self, request: "_Request") -> Answer:
        """From an offset on, behind the node's generation, by which a client sees that it has to begin anew. The last
        part ends with an empty name."""
        word, offset = request.words(2)
        _, node = request.node(word, READ)
        names = b"".join(name + b"\0" for name in node.children)
        start = _number(offset)
        generation = b"%d\0" % node.generation
        if not 0 <= start < len(names):
            return generation + b"\0", []
        part = names[start : start + PAYLOAD_MAX - len(generation) - 1]
        if start + len(part) == len(names):
            return generation + part + b"\0", []
        return generation + part[: part.rindex(b"\0") + 1], []

    def _get_perms(self, request: "_Request") -> Answer:
        return pack(request.node(request.only_word(), READ)[1].permissions), []

    def _is_introduced(self, request: "_Request") -> Answer:
        domid = _number(request.only_word())
        return (b"T\0" if domid == DOMID_SELF or domid in self._state.domains else b"F\0"), []

    def _domain_path(self, request: "_Request") -> Answer:
        return home_of(_number(request.only_word()) % (1 << 32)) + b"\0", []

    def _control(self, request: "_Request") -> Answer:
        """Of Xen's commands for the store itself, those that mean something here."""
        match request.all_words():
            case [b"help"]:
                return b"check\nlog on|off\nprint <string>\nquota\n\0", []
            case [b"check"] | [b"print", _] | [b"log", b"on" | b"off"]:
                return OK, []
            case [b"quota"]:
                quotas = msgspec.structs.asdict(self._quotas)
                return "".join(f"{name}: {value}\n" for name, value in quotas.items()).encode() + b"\0", []
        raise Refusal("EINVAL")

    # ---- changing ----

    def _write(self, request: "_Request") -> Answer:
        word, value = request.word_and_rest()
        path = request.path(word)
        node = request.node_or_none(path, WRITE)
        if node is None:
            return self._create(request, path, value)
        self._check_size(request, len(value) - len(node.value) + node.size)
        return self._changed(request, path, [(Tag.NODE, path, value, node.permissions)])

    def _mkdir(self, request: "_Request") -> Answer:
        path = request.path(request.only_word())
        if request.node_or_none(path, WRITE) is None:
            return self._create(request, path, b"")
        return OK, []

    def _create(self, request: "_Request", path: bytes, value: bytes) -> Answer:
        """With all that is missing above it, each with its parent's permissions."""
        missing, above = [path], parent_of(path)
        while (parent := request.tree.get(above)) is None:
            missing.append(above)
            above = parent_of(above)
        permissions = inherited(parent.permissions, request.domid)
        own = HEADER_BYTES + PERMISSION_BYTES * len(permissions)
        names = [len(name_of(each)) + 1 for each in missing]
        self._check_size(request, own + len(value))
        self._check_size(request, own + max(names[:-1], default=0))
        self._check_size(request, parent.size + names[-1])
        self._check_count(request, len(missing))
        changes: list[Change] = [(Tag.NODE, each, b"", permissions) for each in reversed(missing[1:])]
        changes.append((Tag.NODE, path, value, permissions))
        return self._changed(request, path, changes)

    def _rm(self, request: "_Request") -> Answer:
        path = request.path(request.only_word())
        node = request.node_or_none(path, WRITE)
        if node is None:
            if request.tree.get(parent_of(path)) is None:
                raise Refusal("ENOENT")
            return OK, []
        if path == ROOT:
            raise Refusal("EINVAL")
        return self._removed(request, path)

    def _set_perms(self, request: "_Request") -> Answer:
        word, *words = request.body.split(b"\0")[:-1] or [b""]
        if not words:
            raise Refusal("EINVAL")
        if request.domid and len(words) > self._quotas.permissions:
            raise Refusal("ENOSPC")
        permissions = self._living(unpack(words))
        if word in SPECIAL:
            if request.domid:
                raise Refusal("EACCES")
            return OK, [(Tag.SPECIAL, word, permissions)]
        path, node = request.node(word, WRITE | OWNER)
        if request.domid and permissions[0][0] != node.permissions[0][0]:
            raise Refusal("EPERM")
        self._check_size(request, node.size + PERMISSION_BYTES * (len(permissions) - len(node.permissions)))
        return self._changed(request, path, [(Tag.NODE, path, node.value, permissions)], node.permissions)

    def _living(self, permissions: Permissions) -> Permissions:
        """Nothing is given to a domain that is not there, and it owns nothing."""
        domains = self._state.domains
        if permissions[0][0] and permissions[0][0] not in domains:
            raise Refusal("ENOENT")
        return tuple((domid, bits if not domid or domid in domains else bits | DEAD) for domid, bits in permissions)

    def _check_size(self, request: "_Request", size: int) -> None:
        if request.domid and size >= self._quotas.node_bytes:
            if request.transaction is not None:
                request.transaction.failed = True
            raise Refusal("ENOSPC")

    def _check_count(self, request: "_Request", more: int) -> None:
        if request.domid and self._count(request.domid) + more > self._quotas.nodes:
            raise Refusal("ENOSPC")

    def _count(self, domid: int) -> int:
        return self._state.counts.get(domid, 0)

    def _changed(
        self, request: "_Request", path: bytes, changes: list[Change], before: Permissions | None = None
    ) -> Answer:
        """What `changes` make of a node, and of those above it, is so for the client's transaction, or for all."""
        if request.transaction is not None:
            for _, *values in changes:
                request.transaction.node(*values)
            request.transaction.fired[path] = False
            return OK, []
        now = changes[-1][3]
        return OK, [*changes, *self._fire(path, False, [now] if before is None else [now, before])]

    def _removed(self, request: "_Request", path: bytes) -> Answer:
        transaction = request.transaction or Transaction(self._state.nodes)
        _fire_removal(transaction, path)
        transaction.remove(path)
        return OK, self._merged(transaction) if request.transaction is None else []

    # ---- watches ----

    def _watch(self, request: "_Request") -> Answer:
        word, token = request.words(2)
        path = word if word.startswith(b"@") else request.path(word)
        watches = request.client.watches
        if (path, token) in watches:
            raise Refusal("EEXIST")
        if request.domid and len(watches) >= self._quotas.watches:
            raise Refusal("E2BIG")
        body = word + b"\0" + token + b"\0"
        watched = (Tag.WATCHED, request.connection, path, token, word)
        return OK, [watched, *self._event(request.connection, body, body)]

    def _unwatch(self, request: "_Request") -> Answer:
        word, token = request.words(2)
        path = absolute(word, request.client.home)
        if (path, token) not in request.client.watches:
            raise Refusal("ENOENT")
        return OK, [(Tag.UNWATCHED, request.connection, path, token)]

    def _reset_watches(self, request: "_Request") -> Answer:
        client, number = request.client, request.connection
        changes: list[Change] = [(Tag.UNWATCHED, number, *which) for which in client.watches]
        return OK, [*changes, *((Tag.ENDED, number, each) for each in client.transactions)]

    def _fire(self, path: bytes, exact: bool, permissions: list[Permissions]) -> list[Change]:
        """Events for a change at `path`, for who may read it or its parent."""
        state = self._state
        events: list[Change] = []
        for watch in self._watches_over(path, exact):
            client = state.connections[watch.connection]
            if not client.domid or self._may_hear(client.domid, path, permissions):
                events += self._event(watch.connection, watch.body_for(path), watch.body_for(watch.path))
        return list(dict.fromkeys(events))

    def _watches_over(self, path: bytes, exact: bool) -> list[Watch]:
        """In the order in which they were set."""
        at = self._state.watches
        found = list(at.get(path, ()))
        while path != ROOT and not exact:
            path = parent_of(path)
            found += at.get(path, ())
        return sorted(found, key=_order) if len(found) > 1 else found

    def _may_hear(self, domid: int, path: bytes, permissions: list[Permissions]) -> bool:
        target = self._state.targets.get(domid)
        if any(granted(each, domid, target) & READ for each in permissions):
            return True
        parent = self._state.nodes.get(parent_of(path))
        return parent is not None and bool(granted(parent.permissions, domid, target) & READ)

    def _fire_special(self, name: bytes) -> list[Change]:
        events: list[Change] = []
        for above in (name, ROOT):
            for watch in self._state.watches.get(above, ()):
                client = self._state.connections[watch.connection]
                if granted(self._state.special[name], client.domid) & READ:
                    events += self._event(watch.connection, name + b"\0" + watch.token + b"\0", b"")
        return events

    def _event(self, connection: int, body: bytes, instead: bytes) -> list[Change]:
        """One that says nothing new is left out; beyond a client's quota it is told `instead`."""
        client = self._state.connections[connection]
        if len(client.events) >= self._quotas.events and instead:
            body = instead
        return [] if body in client.mergeable else [(Tag.EVENT, connection, body)]

    # ---- transactions ----

    def _begin(self, request: "_Request") -> Answer:
        client = request.client
        if request.tx_id:
            raise Refusal("EBUSY")
        if request.domid and len(client.transactions) >= self._quotas.transactions:
            raise Refusal("ENOSPC")
        number = client.last_transaction % 0xFFFF_FFFF + 1
        while number in client.transactions:
            number = number % 0xFFFF_FFFF + 1
        return b"%d\0" % number, [(Tag.BEGUN, request.connection, number)]

    def _end(self, request: "_Request") -> Answer:
        word = request.only_word()
        if word not in (b"T", b"F"):
            raise Refusal("EINVAL")
        if not request.tx_id:
            raise Refusal("ENOENT")
        transaction = request.transaction
        assert transaction is not None
        ended: Change = (Tag.ENDED, request.connection, request.tx_id)
        if word == b"F":
            return OK, [ended]
        if transaction.failed:
            raise Refusal("ENOMEM", [ended])
        if request.client.transactions[request.tx_id] is None or transaction.conflicts():
            raise Refusal("EAGAIN", [ended])
        changes = self._merged(transaction)
        made = sum(tag == Tag.NODE and path not in self._state.nodes for tag, path, *_ in changes)
        if request.domid and self._count(request.domid) + made > self._quotas.nodes:
            raise Refusal("ENOSPC", [ended])
        return OK, [*changes, ended]

    def _check_seen(self, request: "_Request") -> None:
        if request.transaction is not None and len(request.transaction.seen) > self._quotas.transaction_nodes:
            raise Refusal("ENOSPC")

    def _merged(self, transaction: Transaction) -> list[Change]:
        """What a transaction has changed, and who is to hear of it."""
        nodes = self._state.nodes
        changes: list[Change] = [(Tag.REMOVED, path) for path in transaction.removed()]
        changes += [(Tag.NODE, path, node.value, node.permissions) for path, node in transaction.changed()]
        for path, exact in transaction.fired.items():
            seen = [node.permissions for node in (transaction.get(path), nodes.get(path)) if node is not None]
            changes += self._fire(path, exact, seen)
        return list(dict.fromkeys(changes))

    # ---- domains, as Dom0's programs see them ----

    def _introduce(self, request: "_Request") -> Answer:
        """The hypervisor has done it for every domain that there is."""
        domid, _frame, _port = request.words(3)
        self._known(domid)
        return OK, []

    def _release(self, request: "_Request") -> Answer:
        """The hypervisor does it when the domain is gone."""
        self._known(request.only_word())
        raise Refusal("EBUSY")

    def _resume(self, request: "_Request") -> Answer:
        self._known(request.only_word())
        return OK, []

    def _known(self, word: bytes) -> int:
        """A domain that is there, and is not Dom0."""
        domid = _number(word)
        if not domid:
            raise Refusal("EINVAL")
        if domid not in self._state.domains:
            raise Refusal("ENOENT")
        return domid

    def _set_target(self, request: "_Request") -> Answer:
        domid, target = map(_number, request.words(2))
        if domid not in self._state.domains or target not in self._state.domains:
            raise Refusal("ENOENT")
        return OK, [(Tag.TARGET, domid, target)]

    def _commit(self, changes: list[Change]) -> None:
        """Journaled, and then so. Raises Full."""
        state = self._state
        self._journal.append(_encode(changes), lambda: map(_encode, filter(None, state.snapshot())))
        begun = [(each[1], each[2]) for each in changes if each[0] == Tag.BEGUN]
        state.apply(changes)
        for connection, number in begun:
            state.connections[connection].transactions[number] = Transaction(state.nodes)


class _Request:
    """What a client asks, and the nodes as it sees them."""

    __slots__ = ("_state", "body", "client", "connection", "domid", "transaction", "tree", "tx_id")

    def __init__(self, client: Connection, connection: int, tx_id: int, body: bytes, state: State) -> None:
        self.client = client
        self.connection = connection
        self.domid = client.domid
        self.tx_id = tx_id
        self.body = body
        self.transaction: Transaction | None = None
        self.tree: Transaction | dict[bytes, Node] = state.nodes
        self._state = state

    def enter(self) -> None:
        """Its transaction. Refuses ENOENT. One of another life sees what is there; what it changes is never so."""
        if self.tx_id not in self.client.transactions:
            raise Refusal("ENOENT")
        self.transaction = self.client.transactions[self.tx_id] or Transaction(self._state.nodes)
        self.tree = self.transaction

    def words(self, count: int) -> list[bytes]:
        """The body's words, NUL behind each. Refuses EINVAL another number of them."""
        words = self.all_words()
        if len(words) != count:
            raise Refusal("EINVAL")
        return words

    def all_words(self) -> list[bytes]:
        if not self.body.endswith(b"\0"):
            raise Refusal("EINVAL")
        return self.body[:-1].split(b"\0")

    def only_word(self) -> bytes:
        body = self.body
        if body.find(b"\0") != len(body) - 1:
            raise Refusal("EINVAL")
        return body[:-1]

    def word_and_rest(self) -> tuple[bytes, bytes]:
        word, nul, rest = self.body.partition(b"\0")
        if not nul:
            raise Refusal("EINVAL")
        return word, rest

    def path(self, word: bytes) -> bytes:
        return canonical(word, self.client.home)

    def node(self, word: bytes, wanted: int) -> tuple[bytes, Node]:
        """Refuses ENOENT, or EACCES."""
        path = self.path(word)
        node = self.node_or_none(path, wanted)
        if node is None:
            raise Refusal("ENOENT")
        return path, node

    def node_or_none(self, path: bytes, wanted: int) -> Node | None:
        """Refuses EACCES, also where somebody may not know whether it is there."""
        node = self.tree.get(path)
        if self.domid == 0 and (node is not None or self.transaction is None):
            return node
        nearest = node
        while nearest is None:
            path = parent_of(path)
            nearest = self.tree.get(path)
        may = granted(nearest.permissions, self.domid, self._state.targets.get(self.domid)) & wanted
        if not may or (node is not None and may != wanted):
            if node is not None:
                self.tree.get(parent_of(path))
            raise Refusal("EACCES")
        return node


_order = attrgetter("order")


def _fire_removal(transaction: Transaction, path: bytes) -> None:
    """Who watches one below hears of that one alone; the others of the one that is removed."""
    for each in transaction.below(path):
        transaction.fired[each] = True
    transaction.fired[path] = False


def _make(transaction: Transaction, path: bytes, value: bytes, domid: int, permissions: Permissions) -> None:
    missing, above = [], parent_of(path)
    while (parent := transaction.get(above)) is None:
        missing.append(above)
        above = parent_of(above)
    for each in reversed(missing):
        transaction.node(each, b"", inherited(parent.permissions, domid))
    transaction.node(path, value, permissions)
    transaction.fired[path] = False


def _permissions_of(node: StoreNode) -> Permissions:
    readers = () if node.reader is None else ((node.reader, READ),)
    return ((node.owner, 0), *readers)


def _number(word: bytes) -> int:
    """As atoi(3) reads it."""
    found = _NUMBER(word)
    return int(found[0]) if found else 0
