"""How much is typed into a guest's tty before it is known to have read: never so much that it throttles."""

from hypothesis import given
from hypothesis import strategies as st

from domains.guests.line_room import ROOM_BYTES, LineRoom

THROTTLED_ABOVE = 4096 - 128
"""n_tty_check_throttle, where a line has ended."""


def test_what_fits_is_typed_and_the_rest_waits_for_a_look():
    room = LineRoom()
    keys = b"x" * 5000
    first = room.fits(keys)
    assert len(first) == ROOM_BYTES
    room.typed(first)
    assert room.fits(keys) == b""
    room.looked(1, by_lines=False)
    assert room.fits(keys) == b"", "some was read, but more may be on its way"
    room.looked(0, by_lines=False)
    assert len(room.fits(keys)) == ROOM_BYTES


def test_a_line_that_was_begun_is_still_unread_where_lines_are_read():
    room = LineRoom()
    room.typed(b"one\n" + b"x" * 1000)
    room.looked(0, by_lines=True)
    assert room.room() == ROOM_BYTES - 1000
    room.looked(0, by_lines=False)
    assert room.room() == ROOM_BYTES


def test_a_line_too_long_is_cut_and_its_end_is_typed():
    room = LineRoom()
    room.typed(b"x" * ROOM_BYTES)
    room.looked(0, by_lines=True)
    assert room.cut(b"yyy\nnext") == 3
    assert room.cut(b"yyy") == 3
    assert room.cut(b"\nnext") == 0
    assert room.fits(b"\nnext") == b"\n"
    room.typed(b"\n")
    assert not room.too_long
    room.looked(0, by_lines=True)
    assert room.fits(b"next") == b"next"


def test_ctrl_c_ends_a_line():
    room = LineRoom()
    room.typed(b"x" * 100 + b"\x03" + b"ab")
    room.looked(0, by_lines=True)
    assert room.room() == ROOM_BYTES - 2


class Tty:
    """What n_tty holds: whole lines that were not read, and the one that has not ended."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.begun = b""

    def take(self, keys: bytes) -> None:
        *ended, self.begun = (self.begun + keys).split(b"\n")
        self.lines += [line + b"\n" for line in ended]

    def throttles(self) -> bool:
        return bool(self.lines) and sum(map(len, self.lines)) + len(self.begun) > THROTTLED_ABOVE


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=30, max_size=200),
)
def test_no_paste_and_no_reader_make_the_tty_throttle(lengths, steps):
    """The reader reads a line at a time, when it likes; the look sees whole lines only."""
    keys = b"".join(b"x" * length + b"\n" for length in lengths)
    room, tty = LineRoom(by_lines=True), Tty()
    for step in steps:
        if step == 0 and tty.lines:
            tty.lines.pop(0)
        elif step == 1:
            room.looked(sum(map(len, tty.lines)), by_lines=True)
        else:
            keys = keys[room.cut(keys) :]
            fitting = room.fits(keys)
            room.typed(fitting)
            tty.take(fitting)
            keys = keys[len(fitting) :]
        assert not tty.throttles()


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_with_a_reader_every_paste_ends_and_loses_only_what_is_beyond_a_long_lines_bound(lengths):
    keys = b"".join(b"x" * length + b"\n" for length in lengths)
    room, tty, read = LineRoom(by_lines=True), Tty(), []
    while keys:
        keys = keys[room.cut(keys) :]
        fitting = room.fits(keys)
        room.typed(fitting)
        tty.take(fitting)
        keys = keys[len(fitting) :]
        read += tty.lines
        tty.lines = []
        room.looked(0, by_lines=True)
    assert [len(line) - 1 for line in read] == [min(length, ROOM_BYTES) for length in lengths]
