"""A driver over its incarnations: whatever dies in whatever order, at most one serves, and never beside a
predecessor."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernel.abi.guest_config import DomainState
from kernel.abi.ids import DomId, Generation, Peer
from kernel.core.drivers import STANDBY_AFTER_S, Abandon, Activate, Driver, End, Spawn, Withdraw
from kernel.core.restart import RestartPolicy

POLICY = RestartPolicy(free_deaths=2, backoff_s=0.1, max_deaths=6, window_s=10.0)


class DriverMachine(RuleBasedStateMachine):
    """The model: which incarnations live, which of them hold images, how many clones are ordered."""

    @initialize(standby=st.booleans())
    def boot(self, standby):
        self.driver = Driver(POLICY, standby)
        self.standby = standby
        self.generation = 0
        self.living: list[Peer] = []
        self.served: list[Peer] = []
        self.accused: set[Peer] = set()
        self.ordered = 0
        self.now_s = 0.0
        self.abandoned = False
        self.replaced: Peer | None = None
        self.deaths_s: list[float] = []
        self.obey(self.driver.boot())

    def obey(self, orders):
        for order in orders:
            match order:
                case Spawn(gives_way=gives_way):
                    assert not gives_way or self.driver.active in self.living
                    self.ordered += 1
                case Activate(peer=peer, take_published=take_published):
                    assert peer in self.living
                    assert not [old for old in self.served if old in self.living], "two hold an image"
                    assert take_published == (bool(self.served) and self.served[-1] not in self.accused)
                    self.served.append(peer)
                case Withdraw(peer=peer):
                    assert peer not in self.living
                case End(peer=peer):
                    assert peer == self.driver.active
                    self.replaced = peer
                case Abandon(deaths=deaths):
                    assert not self.living
                    assert deaths == len(self.deaths_s) >= POLICY.max_deaths
                    self.abandoned = True

    @precondition(lambda self: self.ordered)
    @rule()
    def a_clone_is_there(self):
        self.ordered -= 1
        self.generation += 1
        peer = Peer(DomId(1), Generation(self.generation))
        self.living.append(peer)
        self.obey(self.driver.cloned(peer))

    @precondition(lambda self: self.living)
    @rule(data=st.data(), after_s=st.sampled_from([0.01, 1.0, 20.0]), accused=st.booleans())
    def one_dies(self, data, after_s, accused):
        peer = data.draw(st.sampled_from(self.living))
        self.now_s += after_s
        if accused:
            self.driver.accused(peer)
            if peer == self.driver.active:
                self.accused.add(peer)
        self.living.remove(peer)
        if peer != self.replaced:
            kept = [death for death in self.deaths_s if death > self.now_s - POLICY.window_s]
            self.deaths_s = [*kept, self.now_s]
        self.obey(self.driver.died(peer, self.now_s))

    @rule()
    def the_administrator_restarts_it(self):
        self.deaths_s = []
        self.abandoned = False
        before, served = self.replaced, self.driver.active
        self.obey(self.driver.restart())
        assert self.replaced == (served or before)

    @precondition(lambda self: self.abandoned)
    @rule()
    def nothing_more_happens(self):
        assert not self.ordered

    @invariant()
    def somebody_serves_or_is_to_come_or_all_is_given_up(self):
        assert self.abandoned == (self.driver.state is DomainState.GIVEN_UP)
        if self.abandoned:
            assert not self.living
        else:
            assert self.driver.active in self.living or self.ordered >= 1

    @invariant()
    def there_are_never_more_than_asked_for(self):
        assert len(self.living) + self.ordered <= (2 if self.standby else 1)


TestDriver = DriverMachine.TestCase


def peer(generation):
    return Peer(DomId(1), Generation(generation))


@pytest.mark.parametrize(("accused", "believed"), [(1, False), (2, True)], ids=["the active", "the standby"])
def test_what_a_driver_published_last_is_believed_unless_it_was_accused(accused, believed):
    driver = Driver(POLICY, wants_standby=True)
    driver.boot()
    driver.cloned(peer(1))
    driver.cloned(peer(2))
    driver.accused(peer(accused))
    assert Activate(peer(2), believed) in driver.died(peer(1), 1.0)
    assert driver.cloned(peer(3)) == []
    assert Activate(peer(3), True) in driver.died(peer(2), 2.0), "an accusation is forgotten with whom it was of"


def test_a_standby_is_not_activated_beside_its_predecessor():
    driver = Driver(POLICY, wants_standby=True)
    driver.boot()
    driver.cloned(peer(1))
    assert driver.cloned(peer(2)) == []
    driver.accused(peer(1))
    assert (driver.active, driver.standby) == (peer(1), peer(2))


def test_the_next_standby_gives_way_to_the_guests_of_the_one_that_died():
    driver = Driver(POLICY, wants_standby=True)
    assert driver.boot() == [Spawn(0.0)]
    assert driver.cloned(peer(1)) == [Activate(peer(1), False), Spawn(0.0)]
    assert driver.cloned(peer(2)) == []
    orders = driver.died(peer(1), 1.0)
    assert orders == [Withdraw(peer(1)), Activate(peer(2), True), Spawn(STANDBY_AFTER_S, gives_way=True)]


def test_a_successor_is_not_held_up_by_a_standby_that_gives_way():
    driver = Driver(POLICY, wants_standby=True)
    driver.boot()
    driver.cloned(peer(1))
    driver.cloned(peer(2))
    driver.died(peer(1), 1.0)
    assert driver.died(peer(2), 1.01) == [Withdraw(peer(2)), Spawn(0.0)]
    assert driver.cloned(peer(3)) == [Activate(peer(3), True)]
    assert driver.died(peer(3), 1.02) == [Withdraw(peer(3)), Spawn(0.1)]
    assert driver.cloned(peer(4)) == [Activate(peer(4), True)]
    assert driver.cloned(peer(5)) == []
    assert (driver.active, driver.standby, driver.spawning) == (peer(4), peer(5), 0)


def test_a_standby_that_died_alone_is_followed_at_once():
    driver = Driver(POLICY, wants_standby=True)
    driver.boot()
    driver.cloned(peer(1))
    driver.cloned(peer(2))
    assert driver.died(peer(2), 1.0) == [Withdraw(peer(2)), Spawn(0.0)]


def given_up() -> Driver:
    """One that served, and died too often at one moment."""
    driver = Driver(RestartPolicy(free_deaths=9, max_deaths=2), wants_standby=False)
    driver.boot()
    driver.cloned(peer(1))
    driver.died(peer(1), 1.0)
    driver.cloned(peer(2))
    assert driver.died(peer(2), 1.0) == [Withdraw(peer(2)), Abandon(2, 10.0)]
    return driver


def test_a_driver_that_was_given_up_starts_anew_with_a_clean_record():
    driver = given_up()
    assert driver.restart() == [Spawn(0.0)]
    assert driver.state is DomainState.STARTING
    assert driver.cloned(peer(3)) == [Activate(peer(3), True)]
    assert driver.died(peer(3), 1.0) == [Withdraw(peer(3)), Spawn(0.0)], "the first death since"


def test_a_planned_restart_is_no_death_and_the_standby_takes_over():
    driver = Driver(RestartPolicy(free_deaths=0, max_deaths=1), wants_standby=True)
    driver.boot()
    driver.cloned(peer(1))
    driver.cloned(peer(2))
    assert driver.restart() == [End(peer(1))]
    orders = driver.died(peer(1), 1.0)
    assert orders == [Withdraw(peer(1)), Activate(peer(2), True), Spawn(STANDBY_AFTER_S, gives_way=True)]
    assert driver.deaths_s == []


def test_a_restart_before_anybody_serves_orders_nothing_twice():
    driver = Driver(POLICY, wants_standby=True)
    assert driver.boot() == [Spawn(0.0)]
    assert driver.restart() == []


def test_a_driver_that_dies_before_its_standby_is_there_is_given_up_all_the_same():
    driver = Driver(RestartPolicy(free_deaths=9, max_deaths=3, window_s=10.0), wants_standby=True)
    driver.boot()
    number = 0
    for _ in range(6):
        if driver.state is DomainState.GIVEN_UP:
            break
        number += 1
        driver.cloned(peer(number))
        driver.died(peer(number), 1.0)
    assert (driver.state, number) == (DomainState.GIVEN_UP, 4)


def settled(driver: Driver, number: int) -> Peer:
    """An incarnation that was ordered is there."""
    peer = Peer(DomId(1), Generation(number))
    driver.cloned(peer)
    return peer


def test_a_standby_that_is_wanted_no_more_is_ended_and_is_no_death():
    driver = Driver(POLICY, True)
    driver.boot()
    active, standby = settled(driver, 1), settled(driver, 2)
    assert driver.keep_standby(False) == [End(standby)]
    assert driver.died(standby, 1.0) == [Withdraw(standby)]
    assert (driver.active, driver.standby, driver.deaths_s, driver.restarts) == (active, None, [], 0)
    assert driver.died(active, 2.0) == [Withdraw(active), Spawn(0.0)]


def test_a_standby_that_was_on_its_way_when_it_was_wanted_no_more_is_ended_once_it_is_there():
    driver = Driver(POLICY, True)
    driver.boot()
    settled(driver, 1)
    assert driver.keep_standby(False) == []
    late = Peer(DomId(1), Generation(2))
    assert driver.cloned(late) == [End(late)]


def test_a_standby_that_is_wanted_is_cloned_once():
    driver = Driver(POLICY, False)
    driver.boot()
    settled(driver, 1)
    assert driver.keep_standby(True) == [Spawn(0.0)]
    assert driver.keep_standby(True) == []
    standby = settled(driver, 2)
    assert driver.standby == standby
