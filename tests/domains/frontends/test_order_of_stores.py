"""What a peer sees in shared memory at whatever moment it looks: nothing is published before it is there, and who goes
to sleep has asked to be woken first."""

import select
import struct
from contextlib import closing

import pytest

from domains.virtio.blk import Type
from kernel.abi.io.blkif import EVENT, PROD, REQUEST, REQUEST_BYTES, REQUESTS_AT, RESPONSES_AT
from tests.domains.frontends.moments import at_fences, between_lines
from tests.domains.virtio.guest_driver import AVAILABLE, USED, GuestDriver

PAGES, LARGE = 512, 8192


def word(view, index):
    """A word of a ring's header."""
    (value,) = struct.unpack_from("<I", view, 4 * index)
    return value


def store(view, index, value):
    struct.pack_into("<I", view, 4 * index, value)


@pytest.mark.parametrize("length", [PAGES, LARGE], ids=["the fast way", "the general way"])
def test_a_request_is_whole_before_the_backend_can_see_it(stand, length):
    stand.activate()
    data = {head: bytes([head]) * length for head in range(1, 13)}
    for head, written in data.items():
        stand.guest.submit(head, Type.OUT, head, written)
    seen = set()

    def look():
        published = word(stand.ring.out_view, PROD)
        seen.add(published)
        for slot, (head, written) in enumerate(list(data.items())[:published]):
            at = REQUESTS_AT + slot * REQUEST_BYTES
            ident, op, _, size, sector, place = REQUEST.unpack_from(stand.ring.out_view, at)
            assert (ident & 0xFF, op, size, sector) == (head, Type.OUT, length, head)
            assert stand.ring.out_view[place : place + length] == written

    with between_lines(look):
        stand.vbd.serve()
    look()
    assert max(seen) == len(data)
    assert len(seen) > 1


def test_a_response_is_there_before_the_frontend_can_see_it(stand):
    stand.activate()
    words = [0x1000 + number for number in range(1, 9)]
    seen = set()

    def look():
        published = word(stand.ring.in_view, PROD)
        seen.add(published)
        assert list(struct.unpack_from(f"<{published}I", stand.ring.in_view, RESPONSES_AT)) == words[:published]

    with between_lines(look):
        stand.ring.publish(words)
    look()
    assert max(seen) == len(words)


@pytest.mark.parametrize("length", [PAGES, LARGE])
def test_data_and_status_are_there_before_the_guest_can_see_that_its_request_is_done(stand, length):
    stand.activate()
    requests = [stand.guest.submit(head, Type.IN, head, length) for head in range(1, 9)]
    stand.vbd.serve()
    stand.answer(*stand.waiting(), fill=b"r")
    seen = set()

    def look():
        (used,) = struct.unpack_from("<H", stand.guest.view, USED + 2)
        seen.add(used)
        for place, request in enumerate(requests[:used]):
            given = struct.unpack_from("<II", stand.guest.view, USED + 4 + 8 * place)
            assert given == (request.head, length + 1)
            assert stand.guest.status(request) == 0
            assert stand.guest.data(request) == b"r" * length

    with between_lines(look):
        stand.vbd.serve()
    look()
    assert seen == set(range(len(requests) + 1))


def rung(stand) -> bool:
    """Whether the doorbell of the active backend has been rung."""
    ready, _, _ = select.select([stand.ring.doorbell], [], [], 0)
    return bool(ready)


def test_a_backend_that_goes_to_sleep_as_a_request_is_published_is_rung(stand):
    stand.activate()
    stand.ring.doorbell.drain()
    store(stand.ring.in_view, EVENT, 1 << 20)
    stand.guest.submit(0, Type.IN, 0, 512)
    with at_fences(lambda: store(stand.ring.in_view, EVENT, word(stand.ring.out_view, PROD))) as passed:
        stand.vbd.serve()
    assert passed
    assert rung(stand)


def test_a_backend_that_is_awake_is_not_rung_for_each_request(stand):
    stand.activate()
    stand.ring.doorbell.drain()
    store(stand.ring.in_view, EVENT, 1 << 20)
    stand.guest.submit(0, Type.IN, 0, 512)
    stand.vbd.serve()
    assert not rung(stand)


def test_a_backend_is_rung_when_its_doorbell_comes_since_it_may_have_been_posted_to_before(stand):
    stand.activate()
    assert rung(stand)


def test_a_frontend_that_goes_to_sleep_as_a_response_is_published_is_rung(stand):
    stand.activate()
    ours = stand.backings[-1].out_view
    store(ours, EVENT, 1 << 20)
    with at_fences(lambda: store(ours, EVENT, word(stand.ring.in_view, PROD))) as passed:
        assert stand.ring.publish([1])
    assert passed


def test_a_frontend_does_not_sleep_over_a_response_that_came_as_it_parked(stand):
    stand.activate()
    assert stand.vbd.park()
    asked = []

    def answer():
        asked.append(word(stand.ring.out_view, EVENT))
        store(stand.ring.in_view, PROD, 1)

    store(stand.backings[-1].out_view, EVENT, 1 << 20)
    with at_fences(answer):
        assert not stand.vbd.park()
    assert asked[0] == 1, "it had asked to be rung before it looked"


def test_a_backend_does_not_sleep_over_a_request_that_came_as_it_parked(stand):
    stand.activate()
    assert stand.ring.park()
    asked = []

    def request():
        asked.append(word(stand.ring.in_view, EVENT))
        store(stand.backings[-1].out_view, PROD, 1)

    store(stand.ring.in_view, EVENT, 1 << 20)
    with at_fences(request):
        assert not stand.ring.park()
    assert asked == [1], "it had asked to be rung before it looked"


def test_a_queue_does_not_sleep_over_a_buffer_that_came_as_it_parked():
    with closing(GuestDriver()) as guest:
        queue = guest.queue()
        asked = []

        def offer():
            asked.append(struct.unpack_from("<H", guest.view, USED + 4 + 8 * guest.size))
            guest.offer(0)

        struct.pack_into("<H", guest.view, USED + 4 + 8 * guest.size, 999)
        with at_fences(offer):
            assert not queue.park()
        assert asked == [(0,)]


def test_a_guest_that_goes_to_sleep_as_its_buffer_is_given_back_is_signalled():
    with closing(GuestDriver()) as guest:
        queue = guest.queue()
        at = AVAILABLE + 4 + 2 * guest.size
        struct.pack_into("<H", guest.view, at, 999)
        queue.publish(0, 1)
        with at_fences(lambda: struct.pack_into("<H", guest.view, at, 0)) as passed:
            assert queue.wants_signal()
        assert passed
