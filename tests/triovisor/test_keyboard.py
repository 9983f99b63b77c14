"""What was typed: kept until it is taken, sent again where it may be lost, dropped where another types."""

import pytest

from kernel.abi.console_io import KEYS_BYTES, ConsoleKeys, ConsoleRole
from triovisor.keyboard import ROOM_BYTES, Keyboard


def test_keys_wait_for_the_keyboard_and_go_in_pieces():
    keyboard = Keyboard()
    assert keyboard.type(b"x" * (KEYS_BYTES + 1))
    assert keyboard.next() is None
    assert keyboard.given(ConsoleRole(3, 0)) == 0
    first = keyboard.next()
    assert first == ConsoleKeys(0, b"x" * KEYS_BYTES)
    keyboard.sent(first)
    assert keyboard.next() == ConsoleKeys(KEYS_BYTES, b"x")


def test_what_was_not_taken_is_sent_again_once_the_keyboard_is_given_back():
    keyboard = Keyboard()
    keyboard.given(ConsoleRole(3, 0))
    keyboard.type(b"abcdef")
    keyboard.sent(ConsoleKeys(0, b"abcdef"))
    keyboard.taken(2)
    keyboard.disconnected()
    assert keyboard.next() is None
    keyboard.given(ConsoleRole(3, 4))
    assert keyboard.next() == ConsoleKeys(4, b"ef")


def test_a_new_session_begins_at_0():
    keyboard = Keyboard()
    keyboard.given(ConsoleRole(3, 0))
    keyboard.type(b"abc")
    assert keyboard.given(ConsoleRole(0, 0)) == 3
    assert not keyboard.type(b"lost")
    keyboard.given(ConsoleRole(5, 0))
    keyboard.type(b"new")
    assert keyboard.next() == ConsoleKeys(0, b"new")


def test_room_ends_and_comes_back():
    keyboard = Keyboard()
    keyboard.given(ConsoleRole(1, 0))
    keyboard.type(b"x" * ROOM_BYTES)
    assert keyboard.room == 0
    keyboard.taken(10)
    assert keyboard.room == 10


@pytest.mark.parametrize("taken", [4, 2**62])
def test_more_taken_than_typed_is_refused(taken):
    keyboard = Keyboard()
    keyboard.given(ConsoleRole(1, 0))
    keyboard.type(b"abc")
    with pytest.raises(ValueError, match="keys taken"):
        keyboard.taken(taken)
