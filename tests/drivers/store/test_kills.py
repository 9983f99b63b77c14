"""The store against a plain model of it, killed at any byte of any request, and recovered from its journal."""

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from drivers.store.journal import Journal
from drivers.store.quotas import Quotas
from drivers.store.store import Store
from kernel.abi.io.xs_wire import Op
from tests.drivers.store.memory import Killed, Memory
from tests.drivers.store.model import NODES, SIZE, TRANSACTIONS, WATCHES, Model

CONNECTIONS = {1: 0, 2: 5, 3: 7, 4: 0}
QUOTAS = Quotas(nodes=NODES, watches=WATCHES, transactions=TRANSACTIONS, node_size=SIZE)
PATHS = (b"/", b"/a", b"/a/b", b"/a/b/c", b"/d", b"/d/e/f", b"/tool")
WHO = st.sampled_from(sorted(CONNECTIONS))
PATH = st.sampled_from(PATHS)
TOKEN = st.sampled_from((b"t", b"u"))
VALUE = st.sampled_from((b"", b"1", b"\0\0", b"long" * 30, b"longer" * 40))
OWNERS = st.sampled_from((b"n0", b"b0", b"r5", b"b5", b"n7"))
ENTRIES = st.lists(st.sampled_from((b"r5", b"w5", b"b7", b"n7")), max_size=2)
INSIDE = st.booleans()
"""Whether in the connection's oldest transaction, if one is open."""

CHANGES = st.sampled_from((Op.WRITE, Op.MKDIR, Op.RM, Op.READ))
RARELY = st.integers(0, 5).map(lambda number: number == 5)
BYTES_UNTIL_KILL = st.integers(0, 2000).map(lambda left: 2000 - left if left > 1800 else None)


class Killable(RuleBasedStateMachine):
    """What clients may rely on: each answer, each event in its order and by its number, whatever happens between."""

    @initialize(open_to_all=st.booleans())
    def begin(self, open_to_all: bool) -> None:
        self.memory = Memory(bytes(1 << 18))
        self.start()
        self.model = Model(CONNECTIONS)
        self.numbers = dict.fromkeys(CONNECTIONS, 0)
        self.history: dict[int, list[bytes]] = {each: [] for each in CONNECTIONS}
        self.delivered = dict.fromkeys(CONNECTIONS, 0)
        for connection, domid in CONNECTIONS.items():
            self.store.connect(connection, domid)
        if open_to_all:
            self.ask(1, Op.SET_PERMS, 0, b"/\0b0\0", None)

    def start(self) -> None:
        self.store = Store(Journal(self.memory.view(), few_records=4), QUOTAS)

    def ask(self, who: int, op: int, tx_id: int, body: bytes, left: int | None) -> None:
        """As the acting part does: after a kill, in the request or before its answer was sent, it looks whether
        the request was executed, else it asks again."""
        self.numbers[who] += 1
        request = (who, self.numbers[who], op, tx_id, body)
        self.memory.left = left
        answer = (0, b"")
        with contextlib.suppress(Killed):
            answer = self.store.request(*request)
        self.memory.left = None
        done_before = False
        if left is not None:
            self.recover()
            last = self.store.last(who)
            done_before = last is not None and last[0] == self.numbers[who]
            if last is not None and done_before:
                answer = last[1:]
            else:
                self.model.recovered()
                answer = self.store.request(*request)
        assert answer == self.model.ask(who, op, tx_id, body)
        if done_before:
            self.model.recovered()
        self.hear()

    def recover(self) -> None:
        self.memory = Memory(self.memory.held)
        self.start()
        for connection, domid in CONNECTIONS.items():
            self.store.connect(connection, domid)

    def hear(self) -> None:
        """Each event that the model fired is queued, in order, unless the same one still waits."""
        for connection, history in self.history.items():
            queue = self.store.connections[connection].events
            known, after = len(history), self.store.connections[connection].next_event
            assert [event.number for event in queue] == list(range(after - len(queue), after))
            assert after - len(queue) <= self.delivered[connection] + 1, "an event is lost"
            new = [event.body for event in queue if event.number > known]
            waiting = set(history[self.delivered[connection] :])
            for fired in self.model.fired:
                if fired.connection == connection:
                    if new and new[0] == fired.body:
                        waiting.add(new.pop(0))
                        history.append(fired.body)
                    else:
                        assert fired.body in waiting, f"{connection} has not heard of {fired.body!r}"
            assert not new, "an event that nothing fired"
        self.model.fired = []

    @rule(sure=RARELY)
    def kill(self, sure=True):
        if not sure:
            return
        self.recover()
        self.model.recovered()

    @rule(left=st.integers(0, 3000), sure=RARELY)
    def kill_while_it_recovers(self, left, sure):
        if not sure:
            return
        self.memory = Memory(self.memory.held)
        self.memory.left = left
        with contextlib.suppress(Killed):
            self.start()
        self.kill()

    @rule(who=WHO, count=st.integers(1, 3))
    def deliver(self, who, count):
        for _ in range(count):
            if event := self.store.next_event(who):
                assert event[1] == self.history[who][event[0] - 1]
                assert event[0] <= self.delivered[who] + 1
                self.delivered[who] = max(self.delivered[who], event[0])
                self.store.event_sent(who, event[0])

    @rule(who=WHO, inside=INSIDE, path=PATH, value=VALUE, left=BYTES_UNTIL_KILL)
    def write(self, who, inside, path, value, left):
        self.ask(who, Op.WRITE, self.oldest(who, inside), path + b"\0" + value, left)

    @rule(who=WHO, inside=INSIDE, path=PATH, left=BYTES_UNTIL_KILL,
          op=st.sampled_from((Op.MKDIR, Op.RM, Op.READ, Op.DIRECTORY, Op.GET_PERMS)))  # fmt: skip
    def make_remove_or_look(self, who, inside, path, op, left):
        self.ask(who, op, self.oldest(who, inside), path + b"\0", left)

    @rule(who=WHO, inside=INSIDE, path=PATH, owner=OWNERS, entries=ENTRIES, left=BYTES_UNTIL_KILL)
    def set_permissions(self, who, inside, path, owner, entries, left):
        self.ask(who, Op.SET_PERMS, self.oldest(who, inside), b"\0".join([path, owner, *entries, b""]), left)

    @rule(who=WHO, op=st.sampled_from((Op.WATCH, Op.WATCH, Op.UNWATCH)), path=PATH, token=TOKEN, left=BYTES_UNTIL_KILL)
    def watch(self, who, op, path, token, left):
        self.ask(who, op, 0, path + b"\0" + token + b"\0", left)

    @rule(who=WHO, left=BYTES_UNTIL_KILL)
    def start_a_transaction(self, who, left):
        self.ask(who, Op.TRANSACTION_START, 0, b"\0", left)

    @rule(who=WHO, how=st.sampled_from((b"T\0", b"T\0", b"F\0")), left=BYTES_UNTIL_KILL)
    def end_a_transaction(self, who, how, left):
        self.ask(who, Op.TRANSACTION_END, self.oldest(who, True), how, left)

    @rule(who=WHO, steps=st.lists(st.tuples(CHANGES, PATH, VALUE), min_size=1, max_size=4), left=BYTES_UNTIL_KILL)
    def make_a_whole_transaction(self, who, steps, left):
        started = self.model.next_id[who]
        self.ask(who, Op.TRANSACTION_START, 0, b"\0", None)
        for op, path, value in steps:
            self.ask(who, op, started, path + b"\0" + (value if op == Op.WRITE else b""), None)
        self.ask(who, Op.TRANSACTION_END, started, b"T\0", left)

    def oldest(self, who: int, inside: bool) -> int:
        return min(self.model.transactions[who], default=0) if inside else 0

    @invariant()
    def what_everybody_sees_is_the_same(self):
        if hasattr(self, "model"):
            seen = self.store.nodes()
            assert {path: node.value for path, node in seen.items()} == {
                path: node.value for path, node in self.model.nodes.items()
            }
            assert {path: tuple(node.children) for path, node in seen.items()} == {
                path: node.children for path, node in self.model.nodes.items()
            }


TestKillable = Killable.TestCase
TestKillable.settings = settings(max_examples=150, stateful_step_count=50)
