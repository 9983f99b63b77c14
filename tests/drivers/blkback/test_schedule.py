"""What a storage daemon is given at once, and what is answered before a flush: under any order of its replies."""

from typing import cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drivers.blkback.flusher import Job
from drivers.blkback.ring import BackRing
from drivers.blkback.schedule import IN_FLIGHT, SETTLE, Schedule
from kernel.abi.io.blkif import Op

PIECE = 4096
TRANSFERS = {Op.READ, Op.WRITE}
RANGES = {Op.DISCARD, Op.WRITE_ZEROES, Op.ZERO_UNMAP}


def pieces(job: Job) -> set[int]:
    return set(range(job.offset // PIECE, (job.offset + job.length + PIECE - 1) // PIECE))


class Model(RuleBasedStateMachine):
    """A daemon that loses what it has not flushed; `volatile` has the pieces whose tables are in its memory alone."""

    @initialize()
    def begin(self):
        self.schedule = Schedule(PIECE)
        self.rings = [cast(BackRing, object())]
        self.added: list[Job] = []
        self.given: dict[int, Job] = {}
        self.answered: set[int] = set()
        self.flushing = False
        self.allocated: set[int] = set()
        self.volatile: set[int] = set()

    @rule(op=st.sampled_from(list(Op)), at=st.integers(0, 40), count=st.integers(1, 20))
    def add(self, op, at, count):
        length = 0 if op == Op.FLUSH else count * 512
        job = Job(self.rings[-1], len(self.added), op, at * 512, length)
        self.added.append(job)
        self.schedule.add(job)

    @rule()
    def another_frontend(self):
        self.rings.append(cast(BackRing, object()))

    @rule()
    def look(self):
        for handle, job in self.schedule.start():
            assert handle not in self.given
            assert handle != SETTLE
            self.given[handle] = job
        if self.schedule.settle():
            assert not self.flushing
            self.flushing = True

    @precondition(lambda self: self.given)
    @rule(data=st.data(), ok=st.booleans())
    def reply(self, data, ok):
        handle = data.draw(st.sampled_from(sorted(self.given)))
        job = self.given.pop(handle)
        if ok and job.op == Op.WRITE:
            new = pieces(job) - self.allocated
            self.allocated |= new
            self.volatile |= new
        elif ok and job.op in RANGES:
            self.allocated -= pieces(job)
            self.volatile |= pieces(job)
        self.answer(self.schedule.replied(handle, ok=ok), ok=ok)

    @precondition(lambda self: self.flushing)
    @rule(ok=st.booleans())
    def flushed(self, ok):
        self.flushing = False
        if ok:
            self.volatile.clear()
        self.answer(self.schedule.replied(SETTLE, ok=ok), ok=ok)

    def answer(self, jobs, *, ok):
        for job in jobs:
            assert job.ident not in self.answered
            self.answered.add(job.ident)
            if ok and job.op in {Op.WRITE, *RANGES}:
                assert not pieces(job) & self.volatile, "it would be lost with the daemon"

    @invariant()
    def what_may_not_change_places_is_not_given_at_once(self):
        open_ = [job for job in self.added if job.ident not in self.answered]
        given = list(self.given.values())
        assert len(given) <= IN_FLIGHT
        assert len({id(job.ring) for job in given}) <= 1
        for job in given:
            assert all(job.ring is other.ring for other in open_ if other.ident < job.ident)
            if job.op in RANGES:
                assert given == [job]

    @invariant()
    def an_answer_is_expected_while_one_is_due(self):
        assert self.schedule.expects == bool(self.given or self.flushing)

    def teardown(self):
        """All is answered in the end."""
        for _ in range(4 * len(self.added) + 4):
            self.look()
            for handle in list(self.given):
                job = self.given.pop(handle)
                self.answer(self.schedule.replied(handle, ok=job.op == Op.READ), ok=False)
            if self.flushing:
                self.flushed(ok=True)
        assert self.answered == {job.ident for job in self.added}


TestSchedule = Model.TestCase


def test_an_answer_to_what_was_not_asked_is_an_error():
    schedule = Schedule(PIECE)
    for handle in (SETTLE, 1):
        with pytest.raises(LookupError):
            schedule.replied(handle, ok=True)


class Played:
    """A schedule and a daemon that answers each job at once."""

    def __init__(self) -> None:
        self.schedule = Schedule(PIECE)
        self.ring = cast(BackRing, object())
        self.count = 0

    def answered_at_once(self, op: Op, at: int = 0) -> bool:
        """Whether a job on one sector is answered without a flush."""
        self.count += 1
        self.schedule.add(Job(self.ring, self.count, op, at, 512))
        ((handle, job),) = self.schedule.start()
        return self.schedule.replied(handle, ok=True) == [job]

    def flush(self, *, ok: bool = True) -> int:
        assert self.schedule.settle()
        assert not self.schedule.settle(), "one flush at a time"
        return len(self.schedule.replied(SETTLE, ok=ok))


def test_a_write_is_answered_at_once_only_where_its_piece_was_written_and_flushed():
    played = Played()
    assert not played.answered_at_once(Op.WRITE)
    assert not played.answered_at_once(Op.WRITE, 512), "written, but not flushed"
    assert played.flush() == 2
    assert played.answered_at_once(Op.WRITE, 1024)
    assert not played.answered_at_once(Op.WRITE, PIECE)


def test_a_flush_that_failed_teaches_nothing():
    played = Played()
    assert not played.answered_at_once(Op.WRITE)
    assert played.flush(ok=False) == 1
    assert not played.answered_at_once(Op.WRITE)


@pytest.mark.parametrize("op", sorted(RANGES))
def test_a_range_waits_for_a_flush_and_its_pieces_are_forgotten(op):
    played = Played()
    played.answered_at_once(Op.WRITE)
    played.flush()
    assert not played.answered_at_once(op)
    assert played.flush() == 1
    assert not played.answered_at_once(Op.WRITE)


def test_who_comes_while_a_flush_is_under_way_waits_for_the_next_one():
    played = Played()
    played.answered_at_once(Op.WRITE)
    assert played.schedule.settle()
    played.answered_at_once(Op.WRITE, 512)
    assert not played.schedule.settle()
    assert [job.offset for job in played.schedule.replied(SETTLE, ok=True)] == [0]
    assert played.flush() == 1
