"""The domain table."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernel.abi.ids import DOM0, DomId, Generation, Peer
from kernel.abi.status import KernelBug, Refused, Status
from kernel.core.domains import MAX_DOMAINS, DomainTable, Kind, Life


class DomainTableMachine(RuleBasedStateMachine):
    """The model: living incarnations, and every number ever given out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = DomainTable()
        self.dom0 = self.table.add("dom0", Kind.DOM0)
        self.names = {"dom0": DOM0}
        self.living: dict[Peer, Life] = {}
        self.seen: set[DomId] = {DOM0}
        self.dead: list[Peer] = []

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def add(self, name):
        if name in self.names:
            with pytest.raises(Refused) as caught:
                self.table.add(name, Kind.GUEST)
            assert caught.value.status is Status.EEXIST
            return
        record = self.table.add(name, Kind.GUEST)
        assert record.domid not in self.seen
        self.seen.add(record.domid)
        self.names[name] = record.domid

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def incarnate(self, data):
        domid = data.draw(st.sampled_from(sorted(self.names.values())))
        peer = self.table.incarnate(domid)
        assert peer not in self.living
        assert peer not in self.dead
        self.living[peer] = Life.CLONED

    @precondition(lambda self: self.living)
    @rule(data=st.data(), life=st.sampled_from(list(Life)))
    def advance(self, data, life):
        peer = data.draw(st.sampled_from(sorted(self.living, key=str)))
        order = list(Life)
        if order.index(life) <= order.index(self.living[peer]):
            with pytest.raises(KernelBug):
                self.table.advance(peer, life)
        else:
            self.table.advance(peer, life)
            self.living[peer] = life
            if life is Life.GONE:
                del self.living[peer]
                self.dead.append(peer)

    @precondition(lambda self: len(self.names) > 1)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(set(self.names) - {"dom0"})))
        domid = self.names[name]
        if any(peer.domid == domid for peer in self.living):
            with pytest.raises(KernelBug):
                self.table.remove(domid)
        else:
            self.table.remove(domid)
            del self.names[name]

    @invariant()
    def the_living_are_alive_and_the_dead_are_stale(self):
        for peer in self.living:
            self.table.check_alive(peer)
        for peer in self.dead:
            with pytest.raises(Refused) as caught:
                self.table.check_alive(peer)
            assert caught.value.status in {Status.ESTALE, Status.ENOENT}


TestDomainTable = DomainTableMachine.TestCase


def test_no_domain_but_the_first_is_dom0():
    table = DomainTable()
    with pytest.raises(KernelBug):
        table.add("guest", Kind.GUEST)
    table.add("dom0", Kind.DOM0)
    with pytest.raises(KernelBug):
        table.add("dom0-again", Kind.DOM0)


def test_a_generation_of_zero_is_nobody():
    table = DomainTable()
    table.add("dom0", Kind.DOM0)
    table.incarnate(DOM0)
    with pytest.raises(Refused):
        table.check_alive(Peer(DOM0, Generation(0)))


def test_domains_are_bounded():
    table = DomainTable()
    table.add("dom0", Kind.DOM0)
    records = [table.add(f"guest-{number}", Kind.GUEST) for number in range(MAX_DOMAINS - 1)]
    with pytest.raises(Refused) as caught:
        table.add("one-too-many", Kind.GUEST)
    assert caught.value.status is Status.ENOSPC
    table.remove(records[0].domid)
    table.add("one-too-many", Kind.GUEST)
