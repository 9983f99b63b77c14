"""The same requests to this store and to Debian's C xenstored: the same answers, the same watch events.

What differs on purpose is in `DIFFERENT`, each with its reason; `test_what_differs_on_purpose` shows what can be shown.
"""

import random
from pathlib import Path

import pytest

from drivers.store.journal import Journal
from drivers.store.store import Store
from kernel.abi.io.xs_wire import PAYLOAD_MAX, Op
from tests.drivers.store.xen import Client, XenStored, c_xenstored

DIFFERENT = {
    "watches": "a domain has 128 watches, as documented: the C one compares wrongly and admits one more",
    "transactions": "a domain has 10 transactions at a time, as documented: the C one admits one more",
    "nodes in a transaction": "a domain has 1000 nodes however it made them: the C one admits 999 by a transaction",
    "numbers of permissions": "only plain decimal domids: the C one also reads 0x10, 010 and -1",
    "special": "EINVAL and EACCES for permissions of `@…`: the C one answers with whatever error was the last, or ends",
    "no NUL": "a path that no NUL ends is EINVAL: the C one answers with whatever error was the last one",
    "memory": "no quota of bytes beside those of nodes, sizes, watches and transactions, which bound it",
    "torn pictures": "a transaction that has a parent as it was and a child as it is now goes on, and conflicts at its "
    "end: the C one answers EIO, lists a child twice, or ends",
    "control": "help, check, log, print and quota alone: a live update or a log file would be of another process",
}

SEEDS = range(12)
DOMIDS = (5, 7)
PATHS = (
    b"/", b"/t", b"/t/a", b"/t/a/b", b"/t/a/b/c", b"/t/d", b"/u", b"/local", b"/local/domain/5", b"/local/domain/5/x",
    b"/local/domain/7/x", b"/local/domain/7/x/y", b"x", b"x/y", b"x/y/z/w", b"o",
)  # fmt: skip
STRANGE = (
    b"", b"//", b"/t/", b"/t//a", b"/t/../a", b"..", b"a.b", b"/t\xff", b"@releaseDomain", b"@introduceDomain", b"@x",
    b"/" + b"p" * 2048, b"/local/domain/5/" + b"q" * 2048, b"/" + b"p" * 2047, b"/local/domain/5/" + b"q" * 2049,
)  # fmt: skip
VALUES = (b"", b"1", b"two", b"\0bin\0", b"v" * 300, b"v" * 1900, b"v" * 2100)
ENTRIES = (b"n0", b"n5", b"n7", b"r5", b"r7", b"w5", b"w7", b"b5", b"b7", b"r0", b"r9", b"n9", b"x5", b"n", b"")


class Ours(Client):
    """A connection to this store."""

    def __init__(self, store: Store, number: int, domid: int) -> None:
        super().__init__()
        self._store, self._number, self._requests = store, number, 0
        store.connect(number, domid)

    def ask(self, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        self._requests += 1
        return self._store.request(self._number, self._requests, op, tx_id, body)

    def heard(self) -> list[bytes]:
        events = []
        while event := self._store.next_event(self._number):
            events.append(event[1])
            self._store.event_sent(self._number, event[0])
        return events


class Pair:
    """Both stores, with clients of Dom0 and of domains 5 and 7, and what a transaction is called in each."""

    def __init__(self, theirs: XenStored) -> None:
        self.store = Store(Journal(memoryview(bytearray(4 << 20))))
        starter = Ours(self.store, 1, 0)
        for domid in DOMIDS:
            assert starter.ask(Op.INTRODUCE, 0, b"%d\x001\x001\0" % domid)[0] == Op.INTRODUCE
        domids = (0, 0, *DOMIDS)
        self.ours: list[Client] = [Ours(self.store, number, domid) for number, domid in enumerate(domids, start=2)]
        self.theirs: list[Client] = [theirs.connect(), theirs.connect(), *theirs.domains.values()]
        self.open: list[dict[int, bool]] = [{} for _ in domids]
        """Transactions, and whether each may have a torn picture by now."""
        self.asked: list[str] = []

    def ask(self, who: int, op: int, tx_id: int, body: bytes) -> bytes:
        """The answer of both, and what it means for the open transactions; then all events since."""
        ours, theirs = self.ours[who].ask(op, tx_id, body), self.theirs[who].ask(op, tx_id, body)
        self.asked.append(f"{who} {op} in {tx_id}: {body[:60]!r} -> {ours}, {theirs}")
        if op == Op.DIRECTORY_PART and ours[0] == op:
            ours, theirs = (op, ours[1].partition(b"\0")[2]), (op, theirs[1].partition(b"\0")[2])
        assert ours == theirs, "\n".join(self.asked[-40:])
        if op == Op.TRANSACTION_START and ours[0] == op:
            self.open[who][int(ours[1][:-1])] = False
        if op == Op.TRANSACTION_END and ours[1] != b"EINVAL\0" and tx_id in self.open[who]:
            del self.open[who][tx_id]
        if op == Op.RESET_WATCHES and ours[0] == op:
            self.open[who].clear()
        if op in (Op.RM, Op.MKDIR, Op.WRITE, Op.TRANSACTION_END) and (op == Op.TRANSACTION_END or not tx_id):
            self.open = [dict.fromkeys(each, True) for each in self.open]
        self.compare_events()
        return ours[1]  # without the generation, of which each has its own

    def compare_events(self) -> None:
        for who in range(len(self.ours)):
            ours, theirs = self.ours[who].heard(), self.theirs[who].heard()
            assert ours == theirs, f"events of {who}\n" + "\n".join(self.asked[-40:])

    def compare_trees(self, path: bytes = b"/") -> None:
        for op in (Op.READ, Op.GET_PERMS):
            self.ask(0, op, 0, path + b"\0")
        for name in self.ask(0, Op.DIRECTORY, 0, path + b"\0").split(b"\0")[:-1]:
            self.compare_trees(path.rstrip(b"/") + b"/" + name)


@pytest.fixture
def pair(tmp_path: Path):
    with c_xenstored(tmp_path, DOMIDS) as theirs:
        pair = Pair(theirs)
        for path, permissions in ((b"/local/domain/5", b"n5"), (b"/local/domain/7", b"n7\0r5"), (b"/t", b"n0\0b5\0r7")):
            pair.ask(0, Op.WRITE, 0, path + b"\0")
            pair.ask(0, Op.SET_PERMS, 0, path + b"\0" + permissions + b"\0")
        yield pair


def some_request(chance: random.Random) -> tuple[int, bytes]:
    """Of a kind that clients make, or nearly."""
    path = chance.choice(STRANGE if chance.random() < 0.08 else PATHS)
    choice = chance.random()
    if choice < 0.3:
        return Op.WRITE, (path + b"\0" + chance.choice(VALUES))[:PAYLOAD_MAX]
    if choice < 0.5:
        op = chance.choice((Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.MKDIR))
        return op, path + b"\0"
    if choice < 0.6:
        return Op.RM, path + b"\0"
    if choice < 0.7:
        path = path.replace(b"@", b"")
        entries = [
            chance.choice(ENTRIES[: 7 if chance.random() < 0.8 else None])
            for _ in range(chance.choice((1, 2, 2, 3, 6)))
        ]
        return Op.SET_PERMS, b"\0".join([path, *entries]) + (b"\0" if chance.random() < 0.97 else b"")
    if choice < 0.8:
        token = chance.choice((b"t1", b"t2", b""))
        return chance.choice((Op.WATCH, Op.WATCH, Op.UNWATCH)), path + b"\0" + token + b"\0"
    if choice < 0.87:
        return Op.TRANSACTION_START, b"\0"
    if choice < 0.95:
        return Op.TRANSACTION_END, chance.choice((b"T\0", b"T\0", b"T\0", b"F\0", b"x\0", b"T"))
    if choice < 0.96:
        return Op.RESET_WATCHES, b"\0"
    return chance.choice(
        (
            (Op.DIRECTORY_PART, path + b"\x000\0"),
            (Op.DIRECTORY_PART, path + b"\x002\0"),
            (Op.IS_DOMAIN_INTRODUCED, chance.choice((b"0\0", b"5\0", b"9\0", b"32752\0", b"x\0"))),
            (Op.GET_DOMAIN_PATH, chance.choice((b"0\0", b"5\0", b"-1\0", b"x\0", b"3"))),
            (Op.RESUME, chance.choice((b"5\0", b"0\0", b"9\0"))),
            (Op.SET_TARGET, chance.choice((b"5\x007\0", b"5\x009\0", b"5\0"))),
            (Op.CONTROL, chance.choice((b"check\0", b"print\0x\0", b"nothing\0", b"", b"check"))),
            (chance.choice((15, 16, 20, 23, 99, 0xFFFF)), b"\0"),
        )
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_any_requests_are_answered_as_the_c_xenstored_answers_them(pair: Pair, seed: int):
    chance = random.Random(seed)
    for _ in range(250):
        who = chance.randrange(4)
        op, body = some_request(chance)
        tx_id = chance.choice([0, *pair.open[who]] if chance.random() < 0.98 else [99])
        if op == Op.TRANSACTION_END and pair.open[who]:
            tx_id = chance.choice(list(pair.open[who]))
        if op == Op.TRANSACTION_START:
            tx_id = 0 if chance.random() < 0.9 else tx_id
            if len(pair.open[who]) >= 5:
                continue
        if pair.open[who].get(tx_id) and op not in (Op.READ, Op.GET_PERMS, Op.TRANSACTION_END):
            continue
        pair.ask(who, op, tx_id, body)
    pair.compare_trees()


def test_a_domain_that_goes_takes_the_same_with_it_and_one_of_its_number_has_no_more_than_a_stranger(pair: Pair):
    for who, path in ((3, b"/local/domain/7/a/b"), (3, b"c"), (0, b"/t/of/dom0"), (0, b"/t/seven"), (0, b"/t/shown")):
        pair.ask(who, Op.WRITE, 0, path + b"\0value")
    pair.ask(0, Op.SET_PERMS, 0, b"/t/seven\0n7\0r5\0")
    pair.ask(0, Op.SET_PERMS, 0, b"/t/shown\0n0\0r7\0")
    pair.ask(2, Op.WRITE, 0, b"/t/of/five\0value")
    pair.ask(0, Op.WRITE, 0, b"/t/seven/below\0of dom0, and goes too")
    assert pair.ask(3, Op.READ, 0, b"/t/shown\0") == b"value"
    pair.ask(2, Op.WATCH, 0, b"/t/seven/below\0below\0")
    pair.ask(0, Op.SET_PERMS, 0, b"@introduceDomain\0n0\0r5\0")
    for who in (0, 1, 2):
        for path in (b"@releaseDomain", b"@introduceDomain", b"/local/domain", b"/t"):
            pair.ask(who, Op.WATCH, 0, path + b"\0token\0")
    gone = pair.ours.pop(), pair.theirs.pop()
    pair.ask(0, Op.RELEASE, 0, b"7\0")
    pair.ask(0, Op.RELEASE, 0, b"7\0")
    pair.compare_trees()
    assert pair.ask(0, Op.GET_PERMS, 0, b"/t/shown\0") == b"n0\0r7\0"
    pair.ask(0, Op.INTRODUCE, 0, b"7\x001\x001\0")
    pair.ours.append(Ours(pair.store, 20, 7))
    pair.theirs.append(gone[1])
    assert pair.ask(3, Op.READ, 0, b"/t/shown\0") == b"EACCES\0"
    pair.ask(3, Op.WRITE, 0, b"/local/domain/7/a\0again")
    pair.ask(0, Op.INTRODUCE, 0, b"7\x001\x001\0")
    pair.ask(0, Op.SET_TARGET, 0, b"5\x007\0")
    pair.compare_trees()


def test_a_domain_with_a_target_may_what_that_may(pair: Pair):
    assert pair.ask(2, Op.WRITE, 0, b"/local/domain/7/dm\0") == b"EACCES\0"
    pair.ask(0, Op.SET_TARGET, 0, b"5\x007\0")
    assert pair.ask(2, Op.WRITE, 0, b"/local/domain/7/dm\0") == b"OK\0"
    assert pair.ask(3, Op.READ, 0, b"dm\0") == b"EACCES\0"
    pair.compare_trees()


def test_a_domain_has_as_many_nodes_as_with_the_c_xenstored(pair: Pair):
    for number in range(999):
        pair.ask(2, Op.MKDIR, 0, b"n/%d/%d\0" % (number // 100, number))
    assert pair.ask(2, Op.MKDIR, 0, b"one/more\0") == b"ENOSPC\0"
    pair.ask(0, Op.MKDIR, 0, b"/local/domain/5/of/dom0\0")
    pair.ask(2, Op.RM, 0, b"n/1\0")
    assert pair.ask(2, Op.MKDIR, 0, b"one/more\0") == b"OK\0"


def test_a_directory_is_listed_in_the_same_parts(pair: Pair):
    for number in range(600):
        pair.ask(0, Op.MKDIR, 0, b"/many/%d-a-child\0" % number)
    assert pair.ask(0, Op.DIRECTORY, 0, b"/many\0") == b"E2BIG\0"
    offset, listed = 0, b""
    while not listed.endswith(b"\0\0"):
        listed += pair.ask(0, Op.DIRECTORY_PART, 0, b"/many\0%d\0" % offset)
        offset = len(listed)
    assert listed.count(b"-a-child\0") == 600


def test_what_differs_on_purpose(pair: Pair):
    """Ours, then the C one's."""

    def answers(who: int, op: int, body: bytes) -> tuple[bytes, bytes]:
        return pair.ours[who].ask(op, 0, body)[1], pair.theirs[who].ask(op, 0, body)[1]

    watches = [answers(2, Op.WATCH, b"w\0%d\0" % number) for number in range(130)]
    assert watches[127:] == [(b"OK\0", b"OK\0"), (b"E2BIG\0", b"OK\0"), (b"E2BIG\0", b"E2BIG\0")]
    transactions = [answers(2, Op.TRANSACTION_START, b"\0") for _ in range(12)]
    assert transactions[9:] == [(b"10\0", b"10\0"), (b"ENOSPC\0", b"11\0"), (b"ENOSPC\0", b"ENOSPC\0")]
    assert answers(0, Op.SET_PERMS, b"/t\0n0\0r0x5\0") == (b"EINVAL\0", b"OK\0")
    assert answers(0, Op.CONTROL, b"quota-soft\0")[0] == b"EINVAL\0"
