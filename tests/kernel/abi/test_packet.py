"""Packets over a socket pair, at the ends of its life."""

import pytest

from kernel.abi import packet


@pytest.fixture
def ends():
    ours, theirs = packet.pair()
    with ours, theirs:
        yield ours, theirs


def test_the_last_packets_of_a_peer_that_closed_with_ours_unread_are_received(ends):
    ours, theirs = ends
    packet.send(ours, b"never read")
    packet.send(theirs, b"first")
    packet.send(theirs, b"last")
    theirs.close()
    assert [packet.receive(ours).data for _ in range(3)] == [b"first", b"last", b""]
