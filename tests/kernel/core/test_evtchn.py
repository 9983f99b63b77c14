"""Event channels, against a model: whatever is asked, nobody binds what was not opened for him."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kernel.abi.hypercalls import ChannelKind
from kernel.abi.ids import ANY_GENERATION, DomId, Generation, Peer, Port
from kernel.abi.status import Refused, Status
from kernel.core.evtchn import MAX_PORTS, EventChannels

PEERS = [Peer(DomId(domid), Generation(generation)) for domid in (1, 2) for generation in (1, 2)]
peers = st.sampled_from(PEERS)
ports = st.integers(1, 3).map(Port)
remotes = st.sampled_from([*PEERS, Peer(DomId(1), ANY_GENERATION)])


class EventChannelMachine(RuleBasedStateMachine):
    """The model: for each end, whom it is open for or bound to."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = EventChannels()
        self.unbound: dict[tuple[Peer, Port], Peer] = {}
        self.bound: dict[tuple[Peer, Port], tuple[Peer, Port]] = {}
        self.widowed: dict[tuple[Peer, Port], Peer] = {}

    def taken(self, end: tuple[Peer, Port]) -> bool:
        return end in self.unbound or end in self.bound or end in self.widowed

    @rule(caller=peers, port=ports, remote=remotes)
    def open_a_port(self, caller, port, remote):
        try:
            self.channels.alloc_unbound(caller, port, remote, ChannelKind.MESSAGE)
        except Refused as refusal:
            assert refusal.status is Status.EEXIST
            assert self.taken((caller, port))
        else:
            assert not self.taken((caller, port))
            self.unbound[caller, port] = remote

    @rule(caller=peers, port=ports, remote=peers, remote_port=ports)
    def bind_to_it(self, caller, port, remote, remote_port):
        end, other = (caller, port), (remote, remote_port)
        try:
            bound = self.channels.bind(caller, port, remote, remote_port)
        except Refused as refusal:
            allowed = self.unbound.get(other) in (caller, Peer(caller.domid, ANY_GENERATION))
            assert refusal.status in {Status.ENOENT, Status.EPERM, Status.EEXIST}
            assert not allowed or self.taken(end) or end == other
        else:
            assert self.unbound.pop(other) in (caller, Peer(caller.domid, ANY_GENERATION))
            assert not self.taken(end)
            assert (bound.owner, bound.owner_port) == other
            self.bound[end], self.bound[other] = other, end

    @rule(caller=peers, port=ports)
    def close_one(self, caller, port):
        end = (caller, port)
        try:
            self.channels.close(caller, port)
        except Refused as refusal:
            assert refusal.status is Status.ENOENT
            assert not self.taken(end)
        else:
            assert self.taken(end)
            self.unbound.pop(end, None)
            self.widowed.pop(end, None)
            other = self.bound.pop(end, None)
            if other is not None and self.bound.pop(other, None) is not None:
                self.widowed[other] = caller

    @rule(peer=peers)
    def die(self, peer):
        told = self.channels.died(peer)
        for table in (self.unbound, self.bound, self.widowed):
            for end in [end for end in table if end[0] == peer]:
                del table[end]
        for end in [end for end, remote in self.unbound.items() if remote == peer]:
            assert end[0] in told
            del self.unbound[end]
        for end in [end for end, other in self.bound.items() if other[0] == peer]:
            assert end[0] in told
            del self.bound[end]
        for end in [end for end, other in self.widowed.items() if other == peer]:
            del self.widowed[end]

    @invariant()
    def no_port_is_left_that_the_model_does_not_know(self):
        real = {(peer, port) for peer, held in self.channels._ports.items() for port in held}
        assert real == set(self.unbound) | set(self.bound) | set(self.widowed)


TestEventChannels = EventChannelMachine.TestCase


def test_a_port_opened_for_one_incarnation_is_not_bound_by_another():
    channels, (owner, _, other, later) = EventChannels(), PEERS
    channels.alloc_unbound(owner, Port(1), other, ChannelKind.MESSAGE)
    with pytest.raises(Refused) as caught:
        channels.bind(later, Port(1), owner, Port(1))
    assert caught.value.status is Status.EPERM
    channels.bind(other, Port(1), owner, Port(1))


def test_ports_of_one_domain_are_bounded():
    channels, (owner, other, *_) = EventChannels(), PEERS
    for port in range(1, MAX_PORTS + 1):
        channels.alloc_unbound(owner, Port(port), other, ChannelKind.MESSAGE)
    with pytest.raises(Refused) as caught:
        channels.alloc_unbound(owner, Port(MAX_PORTS + 1), other, ChannelKind.MESSAGE)
    assert caught.value.status is Status.ENOSPC
    channels.alloc_unbound(other, Port(1), owner, ChannelKind.MESSAGE)
    channels.close(owner, Port(1))
    channels.alloc_unbound(owner, Port(MAX_PORTS + 1), other, ChannelKind.MESSAGE)
