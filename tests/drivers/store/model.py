"""xenstore as one would explain it: a plain dictionary of nodes, in a few lines an operation, without a journal."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from kernel.abi.io.xs_wire import Op

__all__ = ["Fired", "Model", "Refusal"]

READ, WRITE, OWNER = 1, 2, 4
LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
NODES, WATCHES, TRANSACTIONS, SIZE = 12, 4, 2, 200
"""The quotas it is played with."""


class Refusal(Exception):
    """`str()` is the error's name."""


@dataclass(frozen=True)
class Node:
    value: bytes
    permissions: tuple[str, ...]
    children: tuple[bytes, ...] = ()
    stamp: int = 0

    def owner(self) -> int:
        return int(self.permissions[0][1:])


@dataclass
class Transaction:
    seen: dict[bytes, Node | None] = field(default_factory=dict)
    mine: dict[bytes, Node | None] = field(default_factory=dict)
    fires: dict[bytes, bool] = field(default_factory=dict)
    failed: bool = False
    stale: bool = False


@dataclass(frozen=True)
class Fired:
    """A connection hears of a path by a token."""

    connection: int
    body: bytes


def above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or b"/"


def may(domid: int, node: Node) -> int:
    if domid == 0 or node.owner() == domid:
        return READ | WRITE | OWNER
    for entry in node.permissions[1:]:
        if int(entry[1:]) == domid:
            return LETTERS[entry[0]]
    return LETTERS[node.permissions[0][0]]


class Model:
    """`connections` are numbers with their domain's. Each operation returns the reply's body, or raises Refusal."""

    def __init__(self, connections: dict[int, int]) -> None:
        self.domids = connections
        self.nodes = {
            b"/": Node(b"", ("n0",), (b"tool",)),
            b"/tool": Node(b"", ("n0",), (b"xenstored",)),
            b"/tool/xenstored": Node(b"", ("n0",)),
        }
        self.stamp = 0
        self.watches: list[tuple[int, bytes, bytes, int]] = []
        self.transactions: dict[int, dict[int, Transaction]] = {each: {} for each in connections}
        self.next_id = dict.fromkeys(connections, 1)
        self.fired: list[Fired] = []

    def ask(self, who: int, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        """The reply; `fired` is what has fired."""
        self.fired = []
        try:
            transaction = None
            if tx_id and op not in (Op.WATCH, Op.UNWATCH):
                transaction = self.transactions[who].get(tx_id)
                if transaction is None:
                    raise Refusal("ENOENT")
            method = getattr(self, Op(op).name.lower())
            return op, method(who, transaction, tx_id, *body.split(b"\0")[: -1 if op != Op.WRITE else None])
        except Refusal as refusal:
            return Op.ERROR, str(refusal).encode() + b"\0"

    # What is seen, and by whom

    def get(self, transaction: Transaction | None, path: bytes) -> Node | None:
        if transaction is None:
            return self.nodes.get(path)
        seen = transaction.seen.setdefault(path, self.nodes.get(path))
        return transaction.mine.get(path, seen)

    def put(self, transaction: Transaction | None, path: bytes, node: Node | None) -> None:
        if transaction is not None:
            transaction.mine[path] = node
        elif node is None:
            del self.nodes[path]
        else:
            self.stamp += 1
            self.nodes[path] = replace(node, stamp=self.stamp)

    def find(self, who: int, transaction: Transaction | None, path: bytes, wanted: int) -> Node | None:
        node = self.get(transaction, path)
        domid = self.domids[who]
        if node is not None and may(domid, node) & wanted == wanted:
            return node
        nearest, upper = None, path
        while nearest is None:
            upper = above(upper)
            nearest = self.get(transaction, upper)
        if node is not None or not may(domid, nearest) & wanted:
            raise Refusal("EACCES")
        return None

    def there(self, who: int, transaction: Transaction | None, path: bytes, wanted: int) -> Node:
        node = self.find(who, transaction, path, wanted)
        if node is None:
            raise Refusal("ENOENT")
        return node

    def check_size(self, who: int, transaction: Transaction | None, node: Node) -> None:
        names = sum(len(name) + 1 for name in node.children)
        if self.domids[who] and 24 + 8 * len(node.permissions) + len(node.value) + names >= SIZE:
            if transaction:
                transaction.failed = True
            raise Refusal("ENOSPC")

    def owned(self, domid: int) -> int:
        return sum(node.owner() == domid for node in self.nodes.values())

    # Operations

    def read(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes) -> bytes:
        return self.there(who, transaction, path, READ).value

    def directory(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes) -> bytes:
        return b"".join(name + b"\0" for name in self.there(who, transaction, path, READ).children)

    def get_perms(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes) -> bytes:
        return b"".join(each.encode() + b"\0" for each in self.there(who, transaction, path, READ).permissions)

    def write(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes, *values: bytes) -> bytes:
        value = b"\0".join(values)
        node = self.find(who, transaction, path, WRITE)
        if node is None:
            self.create(who, transaction, path, value)
        else:
            self.check_size(who, transaction, replace(node, value=value))
            self.put(transaction, path, replace(node, value=value))
        self.fire(transaction, path, False, None)
        return b"OK\0"

    def mkdir(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes) -> bytes:
        if self.find(who, transaction, path, WRITE) is None:
            self.create(who, transaction, path, b"")
            self.fire(transaction, path, False, None)
        return b"OK\0"

    def create(self, who: int, transaction: Transaction | None, path: bytes, value: bytes) -> None:
        missing, upper = [path], above(path)
        while (parent := self.get(transaction, upper)) is None:
            missing.append(upper)
            upper = above(upper)
        domid = self.domids[who]
        permissions = parent.permissions
        if domid:
            permissions = (f"{permissions[0][0]}{domid}", *permissions[1:])
            if self.owned(domid) + len(missing) > NODES:
                raise Refusal("ENOSPC")
        made = {upper: parent}
        for each in reversed(missing):
            holder = made[above(each)]
            made[above(each)] = replace(holder, children=(*holder.children, each.rpartition(b"/")[2]))
            made[each] = Node(value if each == path else b"", permissions)
        for node in made.values():
            self.check_size(who, transaction, node)
        for each, node in made.items():
            self.put(transaction, each, node)

    def rm(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes) -> bytes:
        node = self.find(who, transaction, path, WRITE)
        if node is not None and path == b"/":
            raise Refusal("EINVAL")
        parent = self.get(transaction, above(path))
        if node is None:
            if parent is None:
                raise Refusal("ENOENT")
            return b"OK\0"
        for each in list(self.below(transaction, path, node)):
            self.fire(transaction, each, each != path, None)
            upper = self.get(transaction, above(each))
            if upper is not None:
                name = each.rpartition(b"/")[2]
                self.put(
                    transaction, above(each), replace(upper, children=tuple(c for c in upper.children if c != name))
                )
            self.put(transaction, each, None)
        return b"OK\0"

    def below(self, transaction: Transaction | None, path: bytes, node: Node) -> Iterator[bytes]:
        for name in node.children:
            child_path = path.rstrip(b"/") + b"/" + name
            child = self.get(transaction, child_path)
            if child is not None:
                yield from self.below(transaction, child_path, child)
        yield path

    def set_perms(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes, *entries: bytes) -> bytes:
        node = self.there(who, transaction, path, WRITE | OWNER)
        changed = replace(node, permissions=tuple(each.decode() for each in entries))
        if self.domids[who] and changed.owner() != node.owner():
            raise Refusal("EPERM")
        self.check_size(who, transaction, changed)
        self.put(transaction, path, changed)
        self.fire(transaction, path, False, node)
        return b"OK\0"

    def watch(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes, token: bytes) -> bytes:
        whole = path if path.startswith(b"/") else b"/local/domain/%d/%s" % (self.domids[who], path)
        watch = (who, whole, token, len(whole) - len(path))
        if any(each[:3] == watch[:3] for each in self.watches):
            raise Refusal("EEXIST")
        if self.domids[who] and sum(self.domids[each[0]] == self.domids[who] for each in self.watches) >= WATCHES:
            raise Refusal("E2BIG")
        self.watches.append(watch)
        self.fired.append(Fired(who, b"%s\0%s\0" % (path, token)))
        return b"OK\0"

    def unwatch(self, who: int, transaction: Transaction | None, tx_id: int, path: bytes, token: bytes) -> bytes:
        whole = path if path.startswith(b"/") else b"/local/domain/%d/%s" % (self.domids[who], path)
        left = [each for each in self.watches if each[:3] != (who, whole, token)]
        if len(left) == len(self.watches):
            raise Refusal("ENOENT")
        self.watches = left
        return b"OK\0"

    def fire(self, transaction: Transaction | None, path: bytes, exact: bool, old: Node | None) -> None:
        """Before a node is taken away, after anything else; `old`: what it was before its permissions changed."""
        if transaction is not None:
            transaction.fires[path] = exact and transaction.fires.get(path, True)
            return
        near = (old, self.nodes.get(path), self.nodes.get(above(path)) if path in self.nodes else None)
        nodes = [each for each in near if each is not None]
        for who, watched, token, cut in self.watches:
            hit = path == watched if exact else watched == b"/" or path == watched or path.startswith(watched + b"/")
            if hit and any(may(self.domids[who], node) & READ for node in nodes):
                self.fired.append(Fired(who, b"%s\0%s\0" % (path[cut:], token)))

    def transaction_start(self, who: int, transaction: Transaction | None, tx_id: int, *_: bytes) -> bytes:
        if transaction is not None:
            raise Refusal("EBUSY")
        if self.domids[who] and len(self.transactions[who]) >= TRANSACTIONS:
            raise Refusal("ENOSPC")
        started = self.next_id[who]
        self.next_id[who] += 1
        self.transactions[who][started] = Transaction()
        return b"%d\0" % started

    def transaction_end(self, who: int, transaction: Transaction | None, tx_id: int, how: bytes) -> bytes:
        if transaction is None:
            raise Refusal("ENOENT")
        del self.transactions[who][tx_id]
        if how == b"F":
            return b"OK\0"
        if transaction.failed:
            raise Refusal("ENOMEM")
        if transaction.stale or any(self.nodes.get(path) != node for path, node in transaction.seen.items()):
            raise Refusal("EAGAIN")
        changes = [(path, transaction.mine[path]) for path in transaction.seen if path in transaction.mine]
        self.check_nodes(who, transaction, changes)
        for path, node in changes:
            if node is not None:
                self.put(None, path, node)
            else:
                self.nodes.pop(path, None)
            if path in transaction.fires:
                self.fire(None, path, transaction.fires[path], transaction.seen[path])
        return b"OK\0"

    def check_nodes(self, who: int, transaction: Transaction, changes: list[tuple[bytes, Node | None]]) -> None:
        after = {**self.nodes, **{path: node for path, node in changes if node is not None}}
        for path, node in changes:
            if node is None:
                after.pop(path, None)
        for domid in {self.domids[who]} - {0}:
            count = sum(node.owner() == domid for node in after.values())
            if count > max(NODES, self.owned(domid)):
                raise Refusal("ENOSPC")

    def recovered(self) -> None:
        """The store was killed: what was done in transactions is lost, and they will conflict."""
        for transactions in self.transactions.values():
            for tx_id in transactions:
                transactions[tx_id] = Transaction(stale=True)
