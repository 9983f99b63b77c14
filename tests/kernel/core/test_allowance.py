"""An allowance gives its burst at once and its rate for ever, and no more."""

from hypothesis import given
from hypothesis import strategies as st

from kernel.core.allowance import Allowance

steps = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), max_size=50)


@given(st.floats(0.1, 100), st.floats(0.1, 100), steps)
def test_no_more_is_had_than_the_burst_and_the_rate(burst, per_s, steps):
    allowance, now_s, had = Allowance(burst, per_s), 0.0, 0.0
    for amount, pause_s in steps:
        now_s += pause_s
        if allowance.has(amount, now_s):
            had += amount
        assert had <= (burst + now_s * per_s) * 1.000001


@given(st.floats(0.1, 100), st.floats(0.1, 100), steps)
def test_whoever_waits_as_long_as_told_is_out_of_debt(burst, per_s, steps):
    allowance, now_s = Allowance(burst, per_s), 0.0
    for amount, pause_s in steps:
        now_s += pause_s + allowance.spend(amount, now_s + pause_s)
        assert allowance.spend(0, now_s) < 1e-6


def test_a_burst_is_there_from_the_beginning_and_again_after_a_rest():
    allowance = Allowance(burst=2, per_s=1)
    assert [allowance.has(1, 5.0) for _ in range(3)] == [True, True, False]
    assert [allowance.has(1, 100.0) for _ in range(3)] == [True, True, False]
