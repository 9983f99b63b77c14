"""Each request to the store, by tables, and what it promises its acting part."""

import pytest

from drivers.store.errors import Refused
from drivers.store.journal import LEAST_BYTES, Journal
from drivers.store.permissions import NONE, READ
from drivers.store.quotas import Quotas
from drivers.store.store import Store
from kernel.abi.io.xs_wire import Op

MEMORY_BYTES = 1 << 20


class Asking:
    """A store and its clients, by connection: 1 is Dom0's, 5 domain 5's, and so on."""

    def __init__(self, quotas: Quotas | None = None, size: int = MEMORY_BYTES) -> None:
        self.memory = bytearray(size)
        self.store = Store(Journal(memoryview(self.memory)), quotas)
        self.numbers: dict[int, int] = {}
        for domid in (5, 7):
            self.store.introduce(domid)
        for connection in (1, 5, 7):
            self.store.connect(connection, connection if connection > 1 else 0)

    def __call__(self, who: int, op: int, *strings: bytes, tx_id: int = 0) -> bytes:
        return self.raw(who, op, b"".join(string + b"\0" for string in strings), tx_id)

    def write(self, who: int, path: bytes, value: bytes, tx_id: int = 0) -> bytes:
        return self.raw(who, Op.WRITE, path + b"\0" + value, tx_id)

    def raw(self, who: int, op: int, body: bytes, tx_id: int = 0) -> bytes:
        self.numbers[who] = self.numbers.get(who, 0) + 1
        answer = self.store.request(who, self.numbers[who], op, tx_id, body)
        assert answer[0] in (op, Op.ERROR)
        return answer[1].removesuffix(b"\0") if answer[0] == Op.ERROR else answer[1]

    def start(self, who: int) -> int:
        return int(self(who, Op.TRANSACTION_START, b"")[:-1])

    def events(self, who: int) -> list[bytes]:
        found = []
        while event := self.store.next_event(who):
            found.append(event[1])
            self.store.event_sent(who, event[0])
        return found

    def again(self) -> "Asking":
        """As a successor sees it."""
        self.store = Store(Journal(memoryview(self.memory)))
        return self


@pytest.fixture
def ask() -> Asking:
    return Asking()


@pytest.mark.parametrize(
    ("op", "body", "error"),
    [
        (Op.READ, b"/t/../tool\0", b"EINVAL"),
        (Op.READ, b"..\0", b"EINVAL"),
        (Op.READ, b"/tool", b"EINVAL"),
        (Op.READ, b"/tool\0/tool\0", b"EINVAL"),
        (Op.READ, b"", b"EINVAL"),
        (Op.READ, b"\0", b"EINVAL"),
        (Op.READ, b"/" + b"p" * 2048 + b"\0", b"EINVAL"),
        (Op.READ, b"/absent\0", b"ENOENT"),
        (Op.WRITE, b"/tool", b"EINVAL"),
        (Op.WRITE, b"/tool//x\0value", b"EINVAL"),
        (Op.WRITE, b"/tool\0" + b"v" * (10 << 20), b"E2BIG"),
        (Op.RM, b"/\0", b"EINVAL"),
        (Op.RM, b"/no/parent\0", b"ENOENT"),
        (Op.SET_PERMS, b"/tool\0", b"EINVAL"),
        (Op.SET_PERMS, b"/tool\0x0\0", b"EINVAL"),
        (Op.SET_PERMS, b"/tool\0n0x10\0", b"EINVAL"),
        (Op.SET_PERMS, b"/tool\0n99\0", b"ENOENT"),
        (Op.SET_PERMS, b"@unknown\0n0\0", b"EINVAL"),
        (Op.WATCH, b"/tool\0", b"EINVAL"),
        (Op.WATCH, b"/tool/\0token\0", b"EINVAL"),
        (Op.WATCH, b"@" + b"x" * 2048 + b"\0token\0", b"EINVAL"),
        (Op.UNWATCH, b"/tool\0token\0", b"ENOENT"),
        (Op.TRANSACTION_END, b"T\0", b"ENOENT"),
        (Op.TRANSACTION_END, b"x\0", b"EINVAL"),
        (Op.INTRODUCE, b"9\x001\0", b"EINVAL"),
        (Op.INTRODUCE, b"9\x001\x000\0", b"EINVAL"),
        (Op.RELEASE, b"0\0", b"EINVAL"),
        (Op.RELEASE, b"9\0", b"ENOENT"),
        (Op.SET_TARGET, b"5\x009\0", b"ENOENT"),
        (Op.DIRECTORY_PART, b"/tool\0", b"EINVAL"),
        (Op.CONTROL, b"live-update\0-s\0", b"EINVAL"),
        (Op.CONTROL, b"quota\0set\0nodes\0x\0", b"EINVAL"),
        (Op.WATCH_EVENT, b"\0", b"ENOSYS"),
        (20, b"\0", b"ENOSYS"),
        (23, b"\0", b"ENOSYS"),
        (Op.INVALID, b"\0", b"ENOSYS"),
        (-1, b"\0", b"ENOSYS"),
    ],
)
def test_bad_input_is_refused_by_the_name_of_an_error_and_changes_nothing(ask: Asking, op, body, error):
    before = bytes(ask.memory)
    assert ask.raw(1, op, body) == error
    assert bytes(ask.memory) == before


@pytest.mark.parametrize(
    "op", [Op.CONTROL, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.RESUME, Op.SET_TARGET]
)
def test_what_only_dom0_may_is_refused_to_others_whatever_they_say(ask: Asking, op):
    assert ask(5, op, b"5", b"7", b"1") == b"EACCES"


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.MKDIR, Op.RM, Op.TRANSACTION_START, Op.RESET_WATCHES])
def test_a_transaction_that_is_not_open_is_enoent(ask: Asking, op):
    assert ask(1, op, b"/tool", tx_id=3) == b"ENOENT"


def test_a_transaction_in_a_transaction_is_ebusy(ask: Asking):
    assert ask(1, Op.TRANSACTION_START, b"", tx_id=ask.start(1)) == b"EBUSY"


def test_a_connection_that_is_not_known_gets_eio(ask: Asking):
    assert ask.store.request(99, 1, Op.READ, 0, b"/tool\0") == (Op.ERROR, b"EIO\0")
    assert ask.store.next_event(99) is None
    assert ask.store.last(99) is None
    ask.store.event_sent(99, 1)
    ask.store.disconnect(99)


# Permissions: who (5 owns, 7 is named, both others are not), what the node's first entry lets everybody, what it lets 7


@pytest.mark.parametrize(
    ("default", "named", "reads", "writes"),
    [
        (b"n5", b"n7", False, False),
        (b"n5", b"r7", True, False),
        (b"n5", b"w7", False, True),
        (b"n5", b"b7", True, True),
        (b"b5", b"n7", False, False),
        (b"b5", b"r0", True, True),
        (b"r5", b"r0", True, False),
        (b"w5", b"r0", False, True),
    ],
)
def test_a_domain_may_what_its_own_entry_says_or_else_what_the_first_says(ask, default, named, reads, writes):
    ask.write(1, b"/n", b"value")
    assert ask(1, Op.SET_PERMS, b"/n", default, named) == b"OK\0"
    assert ask(7, Op.READ, b"/n") == (b"value" if reads else b"EACCES")
    assert ask.write(7, b"/n", b"other") == (b"OK\0" if writes else b"EACCES")
    assert ask(7, Op.SET_PERMS, b"/n", b"n7") == b"EACCES"
    assert ask.write(5, b"/n", b"owner's") == b"OK\0"
    assert ask(5, Op.SET_PERMS, b"/n", b"n7") == b"EPERM"
    assert ask(5, Op.SET_PERMS, b"/n", b"b5", b"r7") == b"OK\0"
    assert ask(1, Op.GET_PERMS, b"/n") == b"b5\0r7\0"


def test_a_node_has_its_parents_permissions_and_a_domain_owns_what_it_makes(ask: Asking):
    ask(1, Op.MKDIR, b"/p")
    ask(1, Op.SET_PERMS, b"/p", b"n0", b"b5", b"r7")
    assert ask.write(5, b"/p/q/r", b"v") == b"OK\0"
    for path in (b"/p/q", b"/p/q/r"):
        assert ask(1, Op.GET_PERMS, path) == b"n5\0b5\0r7\0"
    ask.write(1, b"/p/q/of-dom0", b"v")
    assert ask(1, Op.GET_PERMS, b"/p/q/of-dom0") == b"n5\0b5\0r7\0"


def test_who_may_not_read_above_does_not_learn_what_is_there(ask: Asking):
    ask.write(1, b"/secret/of/dom0", b"v")
    assert ask(5, Op.READ, b"/secret/of/dom0") == ask(5, Op.READ, b"/secret/of/nobody") == b"EACCES"
    assert ask(5, Op.MKDIR, b"/secret/of/mine") == b"EACCES"


def test_relative_paths_begin_at_the_domains_own_node(ask: Asking):
    ask.write(1, b"rel", b"dom0's")
    ask.write(1, b"/local/domain/5/rel", b"its own")
    ask(1, Op.SET_PERMS, b"/local/domain/5/rel", b"n5")
    assert ask(5, Op.READ, b"rel") == b"its own"
    assert ask(1, Op.READ, b"rel") == ask(1, Op.READ, b"/local/domain/0/rel") == b"dom0's"
    ask(5, Op.WATCH, b"rel", b"t")
    ask.write(1, b"/local/domain/5/rel", b"new")
    assert ask.events(5) == [b"rel\0t\0"]  # twice the same, and the first was not sent yet


# Watches


def test_a_watch_fires_once_when_it_is_set_and_then_for_its_node_and_all_below(ask: Asking):
    ask(1, Op.WATCH, b"/w", b"t")
    assert ask.events(1) == [b"/w\0t\0"]
    ask.write(1, b"/w/a/b", b"v")
    ask.write(1, b"/wide", b"v")
    ask(1, Op.SET_PERMS, b"/w/a", b"r0")
    ask(1, Op.MKDIR, b"/w/c")
    ask(1, Op.MKDIR, b"/w/c")
    assert ask.events(1) == [b"/w/a/b\0t\0", b"/w/a\0t\0", b"/w/c\0t\0"]


def test_removing_fires_the_watches_of_each_node_and_those_above_once(ask: Asking):
    ask.write(1, b"/w/a/b", b"v")
    for path, token in ((b"/w", b"above"), (b"/w/a", b"at"), (b"/w/a/b", b"below")):
        ask(1, Op.WATCH, path, token)
    ask.events(1)
    ask(1, Op.RM, b"/w/a")
    assert ask.events(1) == [b"/w/a/b\0below\0", b"/w/a\0above\0", b"/w/a\0at\0"]


def test_a_watch_tells_nobody_of_what_he_may_not_read(ask: Asking):
    ask(5, Op.WATCH, b"/", b"t")
    ask.events(5)
    ask.write(1, b"/hidden", b"v")
    assert ask.events(5) == []
    ask(1, Op.SET_PERMS, b"/hidden", b"r0")
    ask.write(1, b"/hidden", b"w")
    assert ask.events(5) == [b"/hidden\0t\0"]
    ask(1, Op.SET_PERMS, b"/hidden", b"n0")
    assert ask.events(5) == [b"/hidden\0t\0"], "who loses a node is told"


def test_the_same_event_waits_once_and_special_ones_each_count(ask: Asking):
    ask(1, Op.WATCH, b"/w", b"t")
    ask(1, Op.WATCH, b"@introduceDomain", b"t")
    for domid in (8, 9):
        ask.write(1, b"/w", b"v")
        ask.store.introduce(domid)
        ask.store.introduce(domid)
    assert ask.events(1) == [b"/w\0t\0", *[b"@introduceDomain\0t\0"] * 3]
    assert ask.store.take_woken() == {1}
    assert ask.store.take_woken() == set()


def test_a_watch_that_is_taken_back_fires_no_more(ask: Asking):
    for path in (b"/a", b"/b"):
        ask(1, Op.WATCH, path, b"t")
    ask.events(1)
    assert ask(1, Op.UNWATCH, b"/a", b"t") == b"OK\0"
    ask.write(1, b"/a", b"v")
    assert ask(1, Op.RESET_WATCHES, b"") == b"OK\0"
    ask.write(1, b"/b", b"v")
    assert ask.events(1) == []


# Transactions


def test_a_transaction_is_seen_by_nobody_before_its_end_and_fires_then(ask: Asking):
    ask(1, Op.WATCH, b"/t", b"w")
    ask.events(1)
    tx_id = ask.start(1)
    ask.write(1, b"/t/a", b"1", tx_id)
    ask.write(1, b"/t/a", b"2", tx_id)
    assert (ask(1, Op.READ, b"/t/a"), ask(1, Op.READ, b"/t/a", tx_id=tx_id)) == (b"ENOENT", b"2")
    assert ask.events(1) == []
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"OK\0"
    assert (ask(1, Op.READ, b"/t/a"), ask.events(1)) == (b"2", [b"/t/a\0w\0"])
    assert ask(1, Op.READ, b"/t/a", tx_id=tx_id) == b"ENOENT"


@pytest.mark.parametrize(
    "meanwhile",
    [(Op.WRITE, b"/t"), (Op.RM, b"/t"), (Op.SET_PERMS, b"/t", b"n0", b"r5"), (Op.MKDIR, b"/t/below")],
)
def test_a_transaction_conflicts_if_what_it_looked_at_has_changed(ask: Asking, meanwhile):
    ask.write(1, b"/t", b"v")
    tx_id = ask.start(1)
    ask(1, Op.READ, b"/t", tx_id=tx_id)
    ask(1, *meanwhile)
    ask.write(1, b"/other", b"v", tx_id)
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"EAGAIN"
    assert ask(1, Op.READ, b"/other") == b"ENOENT"


def test_a_transaction_conflicts_if_what_it_missed_is_there_now(ask: Asking):
    tx_id = ask.start(1)
    assert ask(1, Op.READ, b"/tool/new", tx_id=tx_id) == b"ENOENT"
    ask.write(1, b"/tool/new", b"v")
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"EAGAIN"


def test_transactions_that_have_nothing_in_common_do_not_conflict(ask: Asking):
    for path in (b"/a", b"/b"):
        ask.write(1, path, b"old")
    first, second = ask.start(1), ask.start(5)
    ask.write(1, b"/a", b"new", first)
    ask.write(1, b"/b", b"new")
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=first) == b"OK\0"
    assert ask(5, Op.TRANSACTION_END, b"T", tx_id=second) == b"OK\0"


def test_a_torn_picture_makes_no_transaction_stumble_and_it_conflicts(ask: Asking):
    ask.write(1, b"/t/a", b"v")
    tx_id = ask.start(1)
    ask(1, Op.DIRECTORY, b"/t", tx_id=tx_id)
    ask(1, Op.RM, b"/t/a")
    ask.write(1, b"/t/b", b"v")
    assert ask(1, Op.RM, b"/t/b", tx_id=tx_id) == b"OK\0"
    assert ask(1, Op.RM, b"/t", tx_id=tx_id) == b"OK\0"
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"EAGAIN"


# Quotas


def test_each_quota_is_that_of_xen_and_dom0_has_none(ask: Asking):
    ask(1, Op.MKDIR, b"/local/domain/5")
    ask(1, Op.SET_PERMS, b"/local/domain/5", b"n5")
    answers = [ask(5, Op.WATCH, b"w", b"%d" % number) for number in range(129)]
    assert answers == [b"OK\0"] * 128 + [b"E2BIG"]
    answers = [ask(5, Op.TRANSACTION_START, b"") for _ in range(11)]
    assert answers == [b"%d\0" % number for number in range(1, 11)] + [b"ENOSPC"]
    ask(5, Op.RESET_WATCHES, b"")
    answers = [ask.write(5, b"n", b"v" * size) for size in (2015, 2016)]
    assert answers == [b"OK\0", b"ENOSPC"]
    ask.write(5, b"n", b"small")
    answers = [ask(5, Op.SET_PERMS, b"n", b"n5", *[b"r7"] * others) for others in (4, 5)]
    assert answers == [b"OK\0", b"ENOSPC"]
    answers = [ask(5, Op.MKDIR, b"d%d" % (number // 50) + b"/%d" % number) for number in range(1000)]
    assert answers.count(b"OK\0") == 1000 - 20 - 2  # beside 20 folders, the domain's own node and n
    assert answers[-1] == b"ENOSPC"
    assert [ask(1, Op.TRANSACTION_START, b"") for _ in range(50)][-1] == b"50\0"


def test_nodes_made_in_a_transaction_count_at_its_end(ask: Asking):
    ask = Asking(Quotas(nodes=10))
    ask(1, Op.MKDIR, b"/local/domain/5")
    ask(1, Op.SET_PERMS, b"/local/domain/5", b"n5")
    for made, answer in ((10, b"ENOSPC"), (9, b"OK\0")):
        tx_id = ask.start(5)
        for number in range(made):
            assert ask(5, Op.MKDIR, b"%d" % number, tx_id=tx_id) == b"OK\0"
        assert ask(5, Op.TRANSACTION_END, b"T", tx_id=tx_id) == answer
    assert ask(5, Op.MKDIR, b"more") == b"ENOSPC"


def test_a_domain_may_ask_no_more_while_others_have_not_been_sent_what_it_caused(ask: Asking):
    ask(1, Op.MKDIR, b"/local/domain/5")
    ask(1, Op.SET_PERMS, b"/local/domain/5", b"n5")
    ask(1, Op.WATCH, b"/local/domain/5", b"t")
    for number in range(20):
        assert ask.store.may_ask(5)
        ask.write(5, b"%d" % number, b"v")
    assert not ask.store.may_ask(5)
    assert ask.again().store.may_ask(1)
    assert not ask.store.may_ask(5), "a successor knows"
    assert len(ask.events(1)) == 21
    assert ask.store.may_ask(5)


def test_who_never_reads_is_overdue_and_costs_the_others_nothing():
    ask = Asking(size=LEAST_BYTES * 4)
    ask(5, Op.WATCH, b"@never", b"t")
    ask(1, Op.WATCH, b"/", b"t" * 1000)
    for number in range(200):
        assert ask.write(1, b"/n/%d" % (number % 40), b"v" * 10) == b"OK\0"
    assert ask.store.overdue() == ask.again().store.overdue() == {1}
    assert ask.store.next_event(1) is None
    assert ask.events(5) == [b"@never\0t\0"]
    ask.store.disconnect(1)
    assert ask.store.overdue() == set()


def test_a_store_that_is_full_refuses_what_would_make_it_larger_and_nothing_else():
    ask = Asking(size=LEAST_BYTES)
    answers = [ask.write(1, b"/big/%d" % number, b"v" * 1000) for number in range(40)]
    stored = answers.count(b"OK\0")
    assert 5 < stored < 20
    assert answers == [b"OK\0"] * stored + [b"ENOSPC"] * (40 - stored)
    tx_id = ask.start(1)
    ask.write(1, b"/big/0", b"v" * 4000, tx_id)
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"ENOSPC"
    with pytest.raises(Refused):
        ask.store.put({b"/put": b"v" * 4000})
    assert ask(1, Op.READ, b"/big/0") == b"v" * 1000
    for _ in range(300):
        assert ask.write(1, b"/big/0", b"w" * 1000) == b"OK\0"
    assert ask(1, Op.RM, b"/big") == b"OK\0"
    assert ask.write(1, b"/big/1", b"v" * 1000) == b"OK\0"
    assert ask.again()(1, Op.READ, b"/big/1") == b"v" * 1000


# Domains, and what the acting part says


def test_a_domain_that_goes_takes_its_nodes_connections_and_rights_with_it(ask: Asking):
    ask(1, Op.WATCH, b"@releaseDomain", b"t")
    ask.store.put({b"/local/domain/5/x": b"v"}, ((5, NONE),))
    ask.store.put({b"/shown": b"v"}, ((0, NONE), (5, READ)))
    ask.write(5, b"x/made", b"v")
    tx_id = ask.start(1)
    ask(1, Op.SET_PERMS, b"/tool", b"n5", tx_id=tx_id)
    assert ask(5, Op.READ, b"/shown") == b"v"
    ask.store.release(5)
    ask.store.release(5)
    assert ask.events(1) == [b"@releaseDomain\0t\0"] * 2
    assert 5 not in ask.store.connections
    assert ask(5, Op.READ, b"/shown") == b"EIO"
    assert ask(1, Op.DIRECTORY, b"/local/domain") == b"ENOENT"
    assert ask(1, Op.IS_DOMAIN_INTRODUCED, b"5") == b"F\0"
    assert ask(1, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"EAGAIN"
    ask.store.introduce(5)
    ask.store.connect(6, 5)
    assert ask(6, Op.READ, b"/shown") == b"EACCES"


def test_put_writes_and_removes_in_one_step_and_fires_for_each(ask: Asking):
    ask.write(1, b"/d/old/below", b"v")
    ask(1, Op.WATCH, b"/d", b"t")
    ask.events(1)
    ask.store.put({b"/d/new/state": b"4", b"/d/old": None, b"/d/absent": None}, ((7, NONE), (5, READ)))
    assert ask.events(1) == [b"/d/new/state\0t\0", b"/d/old\0t\0"]
    assert ask(1, Op.DIRECTORY, b"/d") == b"new\0"
    for path in (b"/d/new", b"/d/new/state"):
        assert ask(1, Op.GET_PERMS, path) == b"n7\0r5\0"
    assert ask(5, Op.READ, b"/d/new/state") == b"4"
    for bad in ({b"relative": b""}, {b"/": b""}, {b"/d/..": b""}):
        with pytest.raises(Refused):
            ask.store.put(bad)


def test_a_successor_knows_all_that_clients_know(ask: Asking):
    ask.store.put({b"/local/domain/5": b"", b"/local/domain/5/x": b"v"}, ((5, NONE), (7, READ)))
    ask(1, Op.SET_PERMS, b"@releaseDomain", b"n0", b"r5")
    ask(1, Op.SET_TARGET, b"7", b"5")
    ask(1, Op.CONTROL, b"quota", b"set", b"watches", b"2")
    ask(5, Op.WATCH, b"@releaseDomain", b"t")
    ask(5, Op.WATCH, b"x", b"u")
    tx_id = ask.start(5)
    ask.write(5, b"x", b"in vain", tx_id)
    ask.write(1, b"/local/domain/5/x", b"w")
    ask.store.event_sent(5, 1)
    ask.write(1, b"/last", b"")
    rooms = [ask.store.weight(), ask.again().store.weight()]
    assert rooms[0] == rooms[1]
    ask.store.connect(5, 5)
    assert ask.store.take_woken() == {5}
    assert ask.store.last(5) == (3, Op.TRANSACTION_START, b"1\0")
    assert ask.store.last(1) == (ask.numbers[1], Op.WRITE, b"OK\0")
    assert ask.store.next_event(5) == (2, b"x\0u\0")
    assert ask.write(7, b"/local/domain/5/by-target", b"") == b"OK\0"
    assert ask(5, Op.WATCH, b"x", b"third") == b"E2BIG"
    assert ask(5, Op.READ, b"x", tx_id=tx_id) == b"w"
    assert ask(5, Op.TRANSACTION_START, b"") == b"2\0"
    assert ask(5, Op.TRANSACTION_END, b"T", tx_id=tx_id) == b"EAGAIN"
    ask.store.release(7)
    assert ask.events(5)[-1] == b"@releaseDomain\0t\0"


def test_an_event_that_a_successor_offers_again_does_not_stand_for_a_later_one(ask: Asking):
    ask(1, Op.WATCH, b"/w", b"t")
    ask.store.event_sent(1, 1)
    ask.again()
    assert ask.store.next_event(1) == (1, b"/w\0t\0"), "that it was sent is not journaled yet"
    ask.write(1, b"/w", b"v")
    assert [event.number for event in ask.store.connections[1].events] == [1, 2]
    assert [event.number for event in ask.again().store.connections[1].events] == [1, 2]


def test_an_administrator_sees_quotas_and_sets_them(ask: Asking):
    assert b"nodes            :     1000 " in ask(1, Op.CONTROL, b"quota")
    assert ask(1, Op.CONTROL, b"quota", b"set", b"nodes", b"1") == b"OK\0"
    assert b"nodes            :        1 " in ask.again()(1, Op.CONTROL, b"quota")
    assert b"watches         :        0\n" in ask(1, Op.CONTROL, b"quota", b"5")
    assert ask(1, Op.CONTROL, b"quota", b"9") == b"ENOENT"
    assert b"quota\t[set <name> <val>|<domid>]\n" in ask(1, Op.CONTROL, b"help")
    assert ask(1, Op.CONTROL, b"check") == ask(1, Op.CONTROL, b"print", b"x") == b"OK\0"
