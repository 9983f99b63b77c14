"""The journal against kills: whatever its writer was at, what it had appended is read, in order, and nothing else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.store.journal import LEAST_BYTES, Journal, JournalBroken
from tests.drivers.store.memory import Killed, Memory

STEPS = st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=40)), max_size=12)


def append(journal: Journal, steps, done: list[list[bytes]]) -> None:
    """`done` holds all that may be read by now: one history, or two while a step is under way."""
    for snapshot, record in steps:
        done.append([record] if snapshot else [*done[-1], record])
        if snapshot:
            assert journal.rotate(record)
        else:
            journal.append(record)
        del done[:-1]


@given(STEPS, STEPS, st.integers(0, 2000))
def test_a_kill_at_any_byte_loses_nothing_that_was_appended(before, after, left):
    memory = Memory(bytes(LEAST_BYTES))
    journal = Journal(memory.view())
    assert journal.read() == []
    assert journal.rotate(b"first")
    done = [[b"first"]]
    append(journal, before, done)
    memory.left = left
    with contextlib.suppress(Killed):
        append(journal, after, done)
    memory.left = None
    successor = Journal(memory.view())
    read = successor.read()
    assert read in done
    successor.append(b"goes on")
    assert Journal(Memory(memory.held).view()).read() == [*read, b"goes on"]


@pytest.mark.parametrize("left", range(0, 40, 3))
def test_a_kill_while_a_snapshot_is_written_leaves_what_was_before(left):
    memory = Memory(bytes(LEAST_BYTES))
    journal = Journal(memory.view())
    assert journal.rotate(b"old")
    journal.append(b"record")
    memory.left = left
    with contextlib.suppress(Killed):
        journal.rotate(b"new snapshot")
    assert Journal(Memory(memory.held).view()).read() in ([b"old", b"record"], [b"new snapshot"])


def test_what_does_not_fit_is_told_before_and_a_snapshot_that_does_not_changes_nothing():
    memory = Memory(bytes(LEAST_BYTES))
    journal = Journal(memory.view())
    assert journal.rotate(b"s")
    journal.append(bytes([7]) * journal.left)
    assert journal.left < 0
    assert not journal.rotate(bytes(journal.half_bytes))
    assert len(Journal(Memory(memory.held).view()).read()) == 2
    assert journal.rotate(b"t" * (journal.half_bytes - 12))
    assert Journal(Memory(memory.held).view()).read() == [b"t" * (journal.half_bytes - 12)]


def test_old_records_behind_the_last_one_are_not_read_again():
    memory = Memory(bytes(LEAST_BYTES))
    journal = Journal(memory.view())
    for snapshot in (b"one", b"two", b"six"):
        assert journal.rotate(snapshot)
        for number in range(5 if snapshot != b"six" else 1):
            journal.append(b"%s %d" % (snapshot, number))
    assert Journal(memory.view()).read() == [b"six", b"six 0"]


def test_memory_that_holds_something_else_is_no_journal():
    with pytest.raises(JournalBroken):
        Journal(memoryview(b"\x07" * LEAST_BYTES))
    with pytest.raises(JournalBroken):
        Journal(memoryview(b"\x01\x02" + bytes(LEAST_BYTES)))
    with pytest.raises(JournalBroken):
        Journal(memoryview(bytearray(b"\x01\x01" + bytes(LEAST_BYTES)))).read()
    with pytest.raises(ValueError, match="too small"):
        Journal(memoryview(bytes(1000)))
