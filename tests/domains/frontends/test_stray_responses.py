"""A response that nobody asked for costs no request that is in flight."""

import pytest

from domains.frontends.backing import RingBroken
from domains.frontends.ledger import Ledger


def in_flight(ledger: Ledger, head: int, slot: int = 0) -> int:
    """Enter a request at `head`, in that slot of its ring; its id."""
    ident = head | slot << 8
    ledger.enter((ident, 0, 0, 512, (), 0, 4096))
    return ident


def test_a_doubled_response_does_not_strike_out_the_next_request_at_its_head():
    ledger = Ledger()
    first = in_flight(ledger, 3)
    ledger.strike_out(first)
    second = in_flight(ledger, 3, slot=1)
    with pytest.raises(RingBroken):
        ledger.strike_out(first)
    assert [entry[0] for entry in ledger.clear()] == [second]


def test_a_response_with_an_unknown_status_leaves_its_request_to_the_successor():
    ledger = Ledger()
    ident = in_flight(ledger, 3)
    with pytest.raises(RingBroken):
        ledger.strike_out(ident | 0xFF << 16)
    assert len(ledger) == 1
