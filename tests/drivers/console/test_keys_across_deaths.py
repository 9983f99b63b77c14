"""Keys from who types to the guest's line, over any number of dying backends: each once, in order, none lost.

The real keyboard of `tv`, the backend's decisions, and both ends of the ring on real memory; what carries them is the
test's: packets on their way to a backend die with it.
"""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domains.frontends.console_ring import ConsoleRing, make_out
from domains.frontends.key_ledger import Keys
from drivers.console.backend import Desk, Watcher
from kernel.abi.console_io import ConsoleKeys, ConsoleRole
from tests.drivers.console.ends import connect
from triovisor.keyboard import Keyboard


class Typing(RuleBasedStateMachine):
    """One who types, a guest that reads as it likes, backends that die."""

    def __init__(self) -> None:
        super().__init__()
        self.front = ConsoleRing(make_out())
        self.keyboard = Keyboard()
        self.numbers = itertools.count()
        self.typed = b""
        self.line = b""
        self.under_way: list[ConsoleKeys] = []
        self.start_backend()

    def start_backend(self) -> None:
        self.back = connect(self.front)
        self.desk = Desk(*self.back.carried)
        self.watcher: Watcher = self.desk.attach(0, keyboard=self.keyboard.session or 0)
        self.watcher.placed = self.back.taken(self.watcher.session)
        self.tell()
        self.keyboard.given(ConsoleRole(self.watcher.session, self.watcher.placed))

    def tell(self) -> None:
        self.back.tell(self.desk.seen(self.back.written()), self.desk.count, self.desk.keyboard)

    @rule(count=st.integers(1, 400))
    def type(self, count):
        keys = b"".join(next(self.numbers).to_bytes(4, "big") for _ in range(count))[: self.keyboard.room]
        assert self.keyboard.type(keys)
        self.typed += keys

    @rule()
    def send(self):
        keys = self.keyboard.next()
        if keys is not None:
            self.under_way.append(keys)
            self.keyboard.sent(keys)

    @precondition(lambda self: self.under_way)
    @rule()
    def place(self):
        message = self.under_way.pop(0)
        keys = self.watcher.unplaced(message.number, message.data)
        assert keys is not None
        while keys and self.back.has_room():
            count = self.back.put_keys(self.watcher.session, self.watcher.placed, keys)
            self.watcher.placed += count
            keys = keys[count:]
        if keys:
            self.under_way.insert(0, ConsoleKeys(self.watcher.placed, keys))

    @rule(most=st.integers(1, 2000))
    def read(self, most):
        slot = self.front.next_slot()
        if not isinstance(slot, Keys):
            return
        taken = slot.data[:most]
        self.line += taken
        self.front.took_keys(len(taken))
        if len(taken) == len(slot.data):
            self.front.took_slot()

    @rule()
    def acknowledge(self):
        taken = self.back.taken(self.watcher.session)
        assert taken <= self.watcher.placed
        self.keyboard.taken(taken)

    @rule()
    def kill(self):
        self.back.close()
        self.under_way.clear()
        self.keyboard.disconnected()
        self.start_backend()

    @invariant()
    def the_line_has_what_was_typed_so_far(self):
        assert self.typed.startswith(self.line)
        assert self.keyboard.untaken >= len(self.typed) - len(self.line)

    def teardown(self):
        while self.keyboard.untaken:
            self.send()
            if self.under_way:
                self.place()
            self.read(2000)
            self.acknowledge()
        assert self.line == self.typed
        self.back.close()
        self.front.release()


TestTyping = Typing.TestCase
TestTyping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
