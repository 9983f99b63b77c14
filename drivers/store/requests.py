"""What each request of a client does to the state."""

from collections.abc import Callable
from typing import Final

from drivers.store import control
from drivers.store.connection import Connection
from drivers.store.domains import Domains
from drivers.store.errors import E2BIG, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, EPERM, Refused
from drivers.store.events import NOBODY, Events
from drivers.store.numbers import domid_of, number_of
from drivers.store.paths import domain_path, is_valid, name_of, parent_of, whole_path
from drivers.store.permissions import DEAD, OWNER, READ, WRITE, Permissions, parse, render
from drivers.store.state import State
from drivers.store.transactions import Transaction
from drivers.store.tree import NODE_BYTES, PERMISSION_BYTES, Node, View, subtree
from drivers.store.watches import Watch
from kernel.abi.io.xs_wire import OPS, PAYLOAD_MAX, Op

__all__ = ["CHANGING", "HANDLERS", "OUTSIDE", "PRIVILEGED", "Requests"]

OK: Final = b"OK\0"
DOMID_SELF = 0x7FF0

NODE_HEADER_BYTES, NODE_PERMISSION_BYTES = 24, 8
"""What the C xenstored takes for a node, as its size is bounded."""


class Requests:
    """Each method of `HANDLERS` takes the client, its transaction if it is in one, and the body; it returns that of the
    reply, or raises Refused where nothing has changed. `changed`: something has that must survive."""

    def __init__(self, state: State, events: Events, domains: Domains) -> None:
        self._state = state
        self._tree = state.tree
        self._events = events
        self._domains = domains
        self.changed = False

    def _find(self, client: Connection, view: View, path: bytes, wanted: int) -> Node | None:
        """The node, if there is one. Raises Refused: EINVAL, or EACCES, also to hide from the client that there is
        none where not even the nearest node above would let it."""
        if path not in self._tree.nodes and not is_valid(path, self._state.quotas.path):
            raise Refused(EINVAL)
        node = view.get(path)
        if node is not None and (not client.domid or self._events.may(client, node.permissions) & wanted == wanted):
            return node
        if client.domid or view is not self._tree:
            above = path
            while (parent := view.get(above := parent_of(above))) is None:
                pass
            if node is not None or not self._events.may(client, parent.permissions) & wanted:
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
        if self._events.may(client, old) & (WRITE | OWNER) != WRITE | OWNER:
            raise Refused(EACCES)
        self._state.special[name] = permissions
        self.changed = True
        return OK

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
        if client.domid and sum(len(each.watches) for each in self._domains.of(client.domid)) >= state.quotas.watches:
            raise Refused(E2BIG)
        cut = len(path) - len(name)
        watch = Watch(client.number, path, token, cut, state.watches.sequence + 1)
        state.room.need(watch.weight())
        state.watches.sequence += 1
        client.watches[path, token] = watch
        state.watches.add(watch)
        self.changed = True
        self._events.queue(client, watch.event(path), NOBODY)
        return OK

    def _unwatch(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        _, token, path = _path_and_token(client, body)
        watch = client.watches.pop((path, token), None)
        if watch is None:
            raise Refused(ENOENT)
        self._state.watches.remove(watch)
        self.changed = True
        return OK

    def _reset_watches(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        self._events.forget_watches(client)
        client.transactions.clear()
        self.changed = True
        return OK

    def _start(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        if transaction is not None:
            raise Refused(EBUSY)
        quotas = self._state.quotas
        open_ones = sum(len(each.transactions) for each in self._domains.of(client.domid)) if client.domid else 0
        if client.domid and open_ones >= quotas.transactions:
            raise Refused(ENOSPC)
        tx_id = client.transaction_id()
        client.transactions[tx_id] = Transaction(self._tree, quotas.transaction_nodes if client.domid else 0)
        self.changed = True
        return b"%d\0" % tx_id

    # Domains, as Dom0 speaks of them

    def _introduce_op(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        """domid, frame, port: the latter two mean nothing here. Again for a domain that has it: it begins anew."""
        strings = body.split(b"\0")[:-1]
        if len(strings) < 3 or number_of(strings[2]) <= 0:
            raise Refused(EINVAL)
        domid = domid_of(strings[0])
        domain = self._state.domains.get(domid)
        self.changed = True
        if domain is None or not domain.introduced:
            self._domains.introduce(domid)
        for each in self._domains.of(domid) if domid else ():
            self._events.forget_watches(each)
            self._events.settle(each, each.next_event)
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
        self.changed = True
        self._domains.release(domid)
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
        self.changed = True
        return OK

    def _get_domain_path(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        return domain_path(domid_of(_one(body))) + b"\0"

    def _is_domain_introduced(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        domid = domid_of(_one(body))
        domain = self._state.domains.get(domid)
        return b"T\0" if domid == DOMID_SELF or (domain and domain.introduced) else b"F\0"

    def _control(self, client: Connection, transaction: Transaction | None, body: bytes) -> bytes:
        reply, self.changed = control.answer(self._state, body)
        return reply

    def _fire(
        self,
        transaction: Transaction | None,
        path: bytes,
        exact: bool,
        node: Node,
        old: Permissions | None = None,
    ) -> None:
        """The node has changed: watches fire, or do at the end of the transaction."""
        if transaction is not None:
            transaction.fire(path, exact)
        else:
            self.changed = True
            self._events.fire(path, exact, node, old)


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


Handler = Callable[[Requests, Connection, Transaction | None, bytes], bytes]

HANDLERS: list[Handler | None] = [None] * OPS
HANDLERS[Op.CONTROL] = Requests._control
HANDLERS[Op.DIRECTORY] = Requests._directory
HANDLERS[Op.READ] = Requests._read
HANDLERS[Op.GET_PERMS] = Requests._get_perms
HANDLERS[Op.WATCH] = Requests._watch
HANDLERS[Op.UNWATCH] = Requests._unwatch
HANDLERS[Op.TRANSACTION_START] = Requests._start
HANDLERS[Op.INTRODUCE] = Requests._introduce_op
HANDLERS[Op.RELEASE] = Requests._release_op
HANDLERS[Op.GET_DOMAIN_PATH] = Requests._get_domain_path
HANDLERS[Op.WRITE] = Requests._write
HANDLERS[Op.MKDIR] = Requests._mkdir
HANDLERS[Op.RM] = Requests._rm
HANDLERS[Op.SET_PERMS] = Requests._set_perms
HANDLERS[Op.IS_DOMAIN_INTRODUCED] = Requests._is_domain_introduced
HANDLERS[Op.RESUME] = Requests._resume
HANDLERS[Op.SET_TARGET] = Requests._set_target
HANDLERS[Op.RESET_WATCHES] = Requests._reset_watches
HANDLERS[Op.DIRECTORY_PART] = Requests._directory_part

PRIVILEGED = frozenset((Op.CONTROL, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.RESUME, Op.SET_TARGET))
OUTSIDE = frozenset((Op.WATCH, Op.UNWATCH))
"""Not of a transaction, whatever id is there."""

CHANGING = frozenset(
    (
        Op.CONTROL, Op.WATCH, Op.UNWATCH, Op.TRANSACTION_START, Op.INTRODUCE, Op.RELEASE, Op.WRITE, Op.MKDIR, Op.RM,
        Op.SET_PERMS, Op.SET_TARGET, Op.RESET_WATCHES,
    )
)  # fmt: skip
