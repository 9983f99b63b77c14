"""The restart policy, as a table."""

import pytest

from kernel.core.restart import GiveUp, RestartAfter, RestartPolicy, decide

POLICY = RestartPolicy(free_deaths=2, backoff_s=0.1, backoff_cap_s=0.3, max_deaths=6, window_s=10.0)


@pytest.mark.parametrize(
    ("deaths_s", "decision"),
    [
        ([100.0], RestartAfter(0.0)),
        ([99.0, 100.0], RestartAfter(0.0)),
        ([98.0, 99.0, 100.0], RestartAfter(0.1)),
        ([97.0, 98.0, 99.0, 100.0], RestartAfter(0.2)),
        ([96.0, 97.0, 98.0, 99.0, 100.0], RestartAfter(0.3)),
        ([95.0, 96.0, 97.0, 98.0, 99.0, 100.0], GiveUp(6, 10.0)),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 100.0], RestartAfter(0.0)),
    ],
    ids=["first", "second", "third", "doubled", "capped", "given up", "old deaths are forgotten"],
)
def test_what_follows_a_death_depends_on_how_many_came_before_it_in_the_window(deaths_s, decision):
    assert decide(POLICY, deaths_s) == decision
