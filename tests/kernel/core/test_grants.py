"""Grants, against a model: memory goes to whom it was granted, once, with no more access, and no token is lost."""

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernel.abi.hypercalls import Access
from kernel.abi.ids import DomId, Generation, GrantRef, Peer
from kernel.abi.status import Refused, Status
from kernel.core.grants import MAX_GRANTS, MAX_UNMAPPED, GrantTable

PEERS = [Peer(DomId(domid), Generation(generation)) for domid in (1, 2) for generation in (1, 2)]
peers = st.sampled_from(PEERS)
refs = st.integers(1, 3).map(GrantRef)
accesses = st.sampled_from(list(Access))


class GrantMachine(RuleBasedStateMachine):
    """The model: for each (owner, ref) whom it is for, how much, and the token while nobody has mapped it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = GrantTable()
        self.tokens = itertools.count()
        self.held: set[int] = set()
        self.grants: dict[tuple[Peer, GrantRef], tuple[Peer, Access, int | None]] = {}

    @rule(owner=peers, ref=refs, to=peers, access=accesses)
    def grant(self, owner, ref, to, access):
        token = next(self.tokens)
        try:
            self.table.grant(owner, ref, to, access, token)
        except Refused as refusal:
            assert refusal.status is Status.EEXIST
            assert (owner, ref) in self.grants
        else:
            assert (owner, ref) not in self.grants
            self.grants[owner, ref] = (to, access, token)
            self.held.add(token)

    @rule(caller=peers, owner=peers, ref=refs, access=accesses)
    def map_it(self, caller, owner, ref, access):
        known = self.grants.get((owner, ref))
        try:
            token = self.table.map(caller, owner, ref, access)
        except Refused as refusal:
            if known is None:
                assert refusal.status is Status.ENOENT
            else:
                assert refusal.status is Status.EPERM
                assert known[0] != caller or access > known[1] or known[2] is None
        else:
            assert known is not None
            assert known == (caller, known[1], token)
            assert access <= known[1]
            self.grants[owner, ref] = (caller, known[1], None)
            self.held.remove(token)

    @rule(owner=peers, ref=refs)
    def end_it(self, owner, ref):
        known = self.grants.pop((owner, ref), None)
        try:
            token = self.table.end(owner, ref)
        except Refused as refusal:
            assert refusal.status is Status.ENOENT
            assert known is None
        else:
            assert known is not None
            assert token == known[2]
            self.held.discard(token)

    @rule(peer=peers)
    def die(self, peer):
        returned = self.table.died(peer)
        gone = [key for key, (to, _, _) in self.grants.items() if peer in (key[0], to)]
        assert set(returned) == {self.grants[key][2] for key in gone} - {None}
        assert len(set(returned)) == len(returned)
        for key in gone:
            del self.grants[key]
        self.held -= set(returned)

    @invariant()
    def no_token_is_lost(self):
        real = {g.token for grants in self.table._grants.values() for g in grants.values() if g.token is not None}
        assert real == self.held


TestGrants = GrantMachine.TestCase


@pytest.mark.parametrize(
    ("caller", "granted", "asked", "status"),
    [
        (PEERS[2], Access.READ, Access.READ, None),
        (PEERS[2], Access.READ_WRITE, Access.READ, None),
        (PEERS[2], Access.READ, Access.READ_WRITE, Status.EPERM),
        (PEERS[3], Access.READ, Access.READ, Status.EPERM),
        (PEERS[1], Access.READ, Access.READ, Status.EPERM),
    ],
    ids=["as granted", "less", "more", "another generation", "another domain"],
)
def test_memory_is_mapped_by_whom_it_was_granted_to_once_and_for_no_more(caller, granted, asked, status):
    table, owner, ref = GrantTable(), PEERS[0], GrantRef(1)
    table.grant(owner, ref, PEERS[2], granted, 7)
    if status is None:
        assert table.map(caller, owner, ref, asked) == 7
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            table.map(caller, owner, ref, asked)
        assert caught.value.status is Status.EPERM


@pytest.mark.parametrize("dead", [PEERS[0], PEERS[2]], ids=["owner", "grantee"])
def test_what_nobody_can_map_any_more_is_given_back(dead):
    table = GrantTable()
    for ref in (1, 2):
        table.grant(PEERS[0], GrantRef(ref), PEERS[2], Access.READ, ref)
    table.map(PEERS[2], PEERS[0], GrantRef(1), Access.READ)
    assert table.died(dead) == [2]
    assert table.died(dead) == []


def test_grants_that_nobody_maps_are_bounded_more_tightly_than_all_of_them():
    table, (owner, to, *_) = GrantTable(), PEERS

    def grant(ref: int, *, mapped: bool) -> Status:
        try:
            table.grant(owner, GrantRef(ref), to, Access.READ, ref)
        except Refused as refusal:
            return refusal.status
        if mapped:
            table.map(to, owner, GrantRef(ref), Access.READ)
        return Status.OK

    assert {grant(ref, mapped=False) for ref in range(1, MAX_UNMAPPED + 1)} == {Status.OK}
    assert grant(0xFFFF, mapped=False) is Status.ENOSPC
    for ref in range(1, MAX_UNMAPPED + 1):
        table.map(to, owner, GrantRef(ref), Access.READ)
    assert {grant(ref, mapped=True) for ref in range(MAX_UNMAPPED + 1, MAX_GRANTS + 1)} == {Status.OK}
    assert grant(0xFFFF, mapped=False) is Status.ENOSPC
    table.end(owner, GrantRef(1))
    assert grant(0xFFFF, mapped=False) is Status.OK
