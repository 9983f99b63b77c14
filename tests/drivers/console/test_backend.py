"""Who watches and who types: by table, and as a state machine."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from drivers.console.backend import Desk, Watcher, beginning, next_piece
from kernel.abi.io.consif import CHUNK_BYTES, OUT_RING, TAIL_BYTES


@pytest.mark.parametrize(
    ("written", "tail", "at", "begins"),
    [
        (100, 0, None, 100),
        (100, 50, None, 50),
        (100, TAIL_BYTES, None, 0),
        (10 * TAIL_BYTES, TAIL_BYTES, None, 9 * TAIL_BYTES),
        (100, TAIL_BYTES, 70, 70),
        (100, 0, 170, 100),
    ],
)
def test_where_a_watcher_begins(written, tail, at, begins):
    assert beginning(written, tail, at) == begins


def test_a_watcher_who_was_outrun_goes_on_where_it_is_whole_again():
    written = 10 * OUT_RING
    assert next_piece(written, written - OUT_RING + CHUNK_BYTES, 10)[0] == written - OUT_RING + CHUNK_BYTES
    assert next_piece(written, written - OUT_RING + CHUNK_BYTES - 1, 10) == (
        written - TAIL_BYTES,
        written - TAIL_BYTES + 10,
    )
    assert next_piece(50, 20, 1000) == (20, 50)


def test_the_first_types_and_a_second_only_with_steal():
    desk = Desk()
    first, second = desk.attach(0), desk.attach(0)
    assert (desk.writer, first.session, second.session) == (first, 1, 0)
    third = desk.attach(0, steal=True)
    assert (desk.writer, first.session, third.session) == (third, 0, 2)
    desk.leave(third)
    assert (desk.writer, first.session) == (first, 3)


def test_who_only_watches_never_types():
    desk = Desk()
    assert desk.attach(0, watch=True).session == 0
    typing = desk.attach(0)
    desk.leave(typing)
    assert desk.keyboard == 0


def test_the_keyboard_waits_for_who_had_it_when_the_last_backend_died():
    desk = Desk(50, 2, 7, 7)
    other = desk.attach(60)
    assert (desk.writer, desk.keyboard, desk.seen(100), desk.count) == (None, 7, 50, 2)
    back = desk.attach(70, keyboard=7)
    assert (back.session, other.session, desk.seen(100), desk.count) == (7, 0, 60, 2)


def test_who_does_not_come_back_is_not_waited_for():
    desk = Desk(50, 3, 7, 7)
    other = desk.attach(60)
    desk.settle()
    assert (desk.writer, other.session, desk.seen(100), desk.count) == (other, 8, 60, 1)


def test_nobody_holds_the_guest_up_where_nobody_watches():
    assert Desk().seen(100) == 100
    assert Desk(0, 0, 7, 7).keyboard == 0


def test_who_comes_back_to_the_same_backend_takes_his_own_place():
    desk = Desk()
    before = desk.attach(0)
    now = desk.attach(0, keyboard=before.session)
    assert (desk.writer, now.session, before.session, desk.watchers) == (now, 1, 0, [now])


def test_keys_that_were_placed_are_not_placed_again_and_none_is_left_out():
    watcher = Watcher(0, True, session=1, placed=5)
    assert watcher.unplaced(3, b"abcd") == b"cd"
    assert watcher.unplaced(0, b"abc") == b""
    assert watcher.unplaced(6, b"x") is None
    assert Watcher(0, True).unplaced(9, b"x") == b""


class Desks(RuleBasedStateMachine):
    """Administrators come, go, steal, and come back after the deaths of backends."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.sessions: set[int] = set()
        self.away: list[int] = []

    @rule(steal=st.booleans(), watch=st.booleans())
    def come(self, steal, watch):
        self.desk.attach(0, steal=steal, watch=watch)

    @precondition(lambda self: self.desk.watchers)
    @rule(data=st.data())
    def go(self, data):
        self.desk.leave(data.draw(st.sampled_from(self.desk.watchers)))

    @rule()
    def die(self):
        desk = self.desk
        self.away = [watcher.session for watcher in desk.watchers]
        self.desk = Desk(desk.seen(0), desk.count, desk.keyboard, max(self.sessions, default=0))

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def come_back(self, data):
        session = data.draw(st.sampled_from(self.away))
        self.away.remove(session)
        kept = session and session == self.desk.keyboard
        watcher = self.desk.attach(0, keyboard=session)
        assert watcher.session == session or not kept

    @rule()
    def settle(self):
        self.desk.settle()

    @invariant()
    def one_types_at_most_and_no_session_is_anothers(self):
        writers = [watcher for watcher in self.desk.watchers if watcher.session]
        assert writers == ([self.desk.writer] if self.desk.writer else [])
        self.sessions |= {watcher.session for watcher in writers}
        assert self.desk.count >= len(self.desk.watchers)

    @invariant()
    def somebody_has_the_keyboard_unless_it_is_kept_for_who_had_it(self):
        assert self.desk.keyboard or not any(watcher.types for watcher in self.desk.watchers)


TestDesks = Desks.TestCase
TestDesks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
