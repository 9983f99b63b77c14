"""A guest stands still while anybody wants it to, whatever asks and answers come in whatever order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernel.abi.ids import DOM0, DomId
from kernel.core.pausing import Ask, Pausing, Stand

BLKBACK, OTHER = DomId(1), DomId(2)
holders = st.sampled_from([DOM0, BLKBACK, OTHER])


class PausingMachine(RuleBasedStateMachine):
    """The model: who wants it to stand still, whether it does, the one order under way."""

    @initialize()
    def boot(self):
        self.pausing = Pausing()
        self.wanted_by: set[DomId] = set()
        self.stands = False
        self.ordered: Ask | None = None
        self.old: list[int] = []
        self.failed_to_go_on = False

    def obey(self, ask):
        if ask is not None:
            assert self.ordered is None, "two orders at once"
            assert ask.paused != self.stands
            assert ask.sequence not in self.old
            self.ordered = ask
            self.failed_to_go_on = False

    @rule(holder=holders)
    def one_wants_it_to_stand(self, holder):
        self.wanted_by.add(holder)
        self.obey(self.pausing.hold(holder))

    @rule(holder=holders)
    def one_does_not_any_more(self, holder):
        self.wanted_by.discard(holder)
        self.obey(self.pausing.release(holder))

    @precondition(lambda self: self.ordered)
    @rule(works=st.booleans())
    def the_actor_answers(self, works):
        ask, self.ordered = self.ordered, None
        assert ask is not None
        self.old.append(ask.sequence)
        if works:
            self.stands = ask.paused
        elif ask.paused:
            self.wanted_by.clear()
        else:
            self.failed_to_go_on = True
        self.obey(self.pausing.answered(ask.sequence, "" if works else "no"))
        assert self.pausing.failure == ("" if works else "no")

    @rule(data=st.data(), why=st.sampled_from(["", "no"]))
    def a_wrong_answer_changes_nothing(self, data, why):
        expected = self.ordered.sequence if self.ordered else -1
        number = data.draw(st.integers(0, 0xFFFF_FFFF).filter(lambda n: n != expected))
        before = self.pausing.stand
        assert self.pausing.answered(number, why) is None
        assert self.pausing.stand is before

    @invariant()
    def it_is_as_wanted_or_about_to_be(self):
        assert self.pausing.holders == self.wanted_by
        assert self.pausing.settled == (self.ordered is None)
        if self.ordered is None:
            assert (self.pausing.stand is Stand.PAUSED) == self.stands
            assert self.stands == bool(self.wanted_by) or (self.stands and self.failed_to_go_on)


TestPausing = PausingMachine.TestCase


def test_a_guest_that_two_want_to_stand_goes_on_when_the_second_lets_it():
    pausing = Pausing()
    assert pausing.hold(DOM0) == Ask(1, True)
    assert pausing.hold(BLKBACK) is None
    assert pausing.answered(1, "") is None
    assert pausing.release(BLKBACK) is None
    assert pausing.release(DOM0) == Ask(2, False)
    assert pausing.answered(2, "") is None
    assert pausing.stand is Stand.RUNNING


def test_what_is_wanted_while_an_order_is_under_way_follows_its_answer():
    pausing = Pausing()
    pausing.hold(DOM0)
    assert pausing.release(DOM0) is None
    assert pausing.answered(1, "") == Ask(2, False)


def test_a_guest_that_could_not_be_unpaused_is_told_again_when_somebody_asks():
    pausing = Pausing()
    pausing.hold(DOM0)
    pausing.answered(1, "")
    assert pausing.release(DOM0) == Ask(2, False)
    assert pausing.answered(2, "its kernel is silent") is None
    assert pausing.stand is Stand.PAUSED
    assert pausing.release(DOM0) == Ask(3, False)


def test_a_successor_of_the_actor_is_given_the_order_under_way_and_told_of_a_guest_that_stands_still():
    pausing = Pausing()
    assert pausing.again() is None
    ask = pausing.hold(DomId(0))
    assert ask is not None
    assert pausing.again() == ask == Ask(1, True)
    pausing.answered(1, "")
    assert pausing.again() == ask
    assert pausing.answered(1, "") is None
    assert pausing.stand is Stand.PAUSED
    assert pausing.release(DomId(0)) == pausing.again() == Ask(2, False)
    pausing.answered(2, "")
    assert pausing.again() is None
