"""The vhost-user protocol: the messages of User-Mode Linux, and those of a front end gone bad."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.virtio import blk
from domains.virtio.queue import QueueLayout
from domains.virtio.vhost_user import (
    WITH_DESCRIPTORS,
    BaseAsked,
    CallChanged,
    MemoryMapped,
    Message,
    ProtocolError,
    QueueResumed,
    QueueStarted,
    QueueStopped,
    Reply,
    Session,
)
from tests.domains.virtio.front_end import packed

FEATURES = 0x1_7000_2244
U64 = struct.Struct("<Q").pack
STATE = struct.Struct("<II").pack
REGION = struct.pack("<IIQQQQ", 1, 0, 0x1000_0000, 1 << 20, 0x7000_0000, 0x4000) + bytes(32)
ADDRESSES = struct.pack("<IIQQQQ", 0, 0, 0x7000_0000, 0x7000_3000, 0x7000_2000, 0)


def session() -> Session:
    return Session(blk.features(read_only=False), blk.config_space(4096))


def message(code: int, payload: bytes = b"", descriptors: tuple[int, ...] = (), flags: int = 1) -> Message:
    return Message(code, flags, payload, descriptors)


def started() -> tuple[Session, QueueStarted]:
    """A session as User-Mode Linux brings it up."""
    ours = session()
    ours.take(message(2, U64(FEATURES)))
    ours.take(message(5, REGION, (90,)))
    ours.take(message(13, U64(0), (91,)))
    ours.take(message(8, STATE(0, 256)))
    ours.take(message(10, STATE(0, 0)))
    ours.take(message(9, ADDRESSES))
    assert ours.take(message(12, U64(0), (92,))) == []
    assert ours.waiting_kick == 92
    (event,) = ours.take(message(18, STATE(0, 1)))
    assert isinstance(event, QueueStarted)
    return ours, event


def test_the_messages_of_user_mode_linux_start_the_queue():
    ours, event = started()
    assert event == QueueStarted(QueueLayout(256, 0, 0x2000, 0x3000), 0, True, 92)
    assert ours.waiting_kick == -1


def test_memory_and_call_are_handed_on():
    ours = session()
    assert ours.take(message(5, REGION, (90,))) == [MemoryMapped(90, 0x1000_0000, 1 << 20, 0x4000)]
    assert ours.take(message(13, U64(0), (91,))) == [CallChanged(91)]
    assert ours.take(message(13, U64(256))) == [CallChanged(-1)]


@pytest.mark.parametrize(
    ("again", "first"),
    [
        (message(5, REGION, (93,)), QueueStopped()),
        (message(9, ADDRESSES), QueueStopped()),
        (message(18, STATE(0, 0)), QueueStopped()),
        (message(4), QueueStopped()),
        (message(11, STATE(0, 0)), QueueStopped()),
    ],
)
def test_what_changes_a_running_queue_stops_it_first(again, first):
    ours, _ = started()
    assert ours.take(again)[0] == first


def test_a_queue_can_be_set_up_again():
    """A guest reboots its driver: `rmmod virtio_blk`, `insmod virtio_blk`."""
    ours, _ = started()
    ours.take(message(18, STATE(0, 0)))
    ours.take(message(12, U64(0), (95,)))
    (event,) = ours.take(message(18, STATE(0, 1)))
    assert isinstance(event, QueueStarted)
    assert event.kick == 95


def test_the_base_is_told_when_asked():
    ours, _ = started()
    assert ours.take(message(11, STATE(0, 0))) == [QueueStopped(), BaseAsked()]
    ours.stopped_at = 77
    assert ours.base_reply().data == packed(11, STATE(0, 77), 5)


def test_a_message_that_wants_a_reply_gets_one():
    assert session().take(message(3, flags=9)) == [Reply(packed(3, U64(0), 5))]
    assert len(session().take(message(1, flags=9))) == 1


def test_the_configuration_is_read_in_parts():
    (reply,) = session().take(message(24, struct.pack("<III", 0, 60, 0) + bytes(60)))
    assert isinstance(reply, Reply)
    assert reply.data[24:] == blk.config_space(4096)
    (reply,) = session().take(message(24, struct.pack("<III", 250, 6, 0) + bytes(6)))
    assert isinstance(reply, Reply)
    assert reply.data[24:] == bytes(6)


BAD = {
    "unknown type": message(99),
    "log": message(6, bytes(16)),
    "wrong version": message(1, flags=2),
    "a reply": message(1, flags=5),
    "payload too short": message(2, bytes(7)),
    "payload too long": message(3, bytes(1)),
    "features not offered": message(2, U64(1 << 63)),
    "protocol features not offered": message(16, U64(1 << 1)),
    "descriptor where none belongs": message(3, b"", (9,)),
    "memory table cut short": message(5, REGION[:39], (9,)),
    "two regions": message(5, struct.pack("<II", 2, 0) + REGION[8:], (9, 10)),
    "memory without descriptor": message(5, REGION),
    "memory with two": message(5, REGION, (9, 10)),
    "second queue": message(8, STATE(1, 64)),
    "addresses before memory": message(9, ADDRESSES),
    "kick without descriptor": message(12, U64(0)),
    "kick by polling": message(12, U64(256)),
    "kick of queue 1": message(12, U64(1), (9,)),
    "call with two descriptors": message(13, U64(0), (9, 10)),
    "call with one too many": message(13, U64(256), (9,)),
    "enable queue 1": message(18, STATE(1, 1)),
    "configuration out of range": message(24, struct.pack("<III", 200, 100, 0) + bytes(100)),
    "configuration of a wrong length": message(24, struct.pack("<III", 0, 60, 0) + bytes(59)),
    "configuration cut short": message(24, bytes(11)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_the_protocol_does_not_allow_is_an_error(bad):
    with pytest.raises(ProtocolError):
        session().take(bad)


@pytest.mark.parametrize("address", [0, 0x6FFF_FFFF, 0x7010_0000, 1 << 63])
def test_a_queue_outside_memory_is_an_error(address):
    ours = session()
    ours.take(message(5, REGION, (90,)))
    with pytest.raises(ProtocolError):
        ours.take(message(9, struct.pack("<IIQQQQ", 0, 0, 0x7000_0000, address, 0x7000_2000, 0)))


@given(
    st.lists(st.tuples(st.integers(0, 26), st.integers(0, 15), st.binary(max_size=300), st.integers(0, 2)), max_size=20)
)
def test_no_sequence_of_messages_does_more_than_end_the_session(messages):
    ours = session()
    for code, flags, payload, count in messages:
        try:
            ours.take(Message(code, flags, payload, tuple(range(100, 100 + count))))
        except ProtocolError:
            return


def follow(ours: Session, messages) -> list:
    """What becomes of each message: events, or that it is an error."""
    outcomes = []
    for each in messages:
        try:
            outcomes.append(ours.take(each))
        except ProtocolError as error:
            return [*outcomes, error.what]
    return outcomes


ALPHABET = [
    message(1), message(2, U64(FEATURES)), message(2, U64(1 << 32)), message(3), message(4), message(5, REGION, (5,)),
    message(8, STATE(0, 256)), message(8, STATE(0, 64)), message(9, ADDRESSES), message(10, STATE(0, 7)),
    message(11, STATE(0, 0)), message(12, U64(0), (12,)), message(13, U64(0), (13,)), message(13, U64(256)),
    message(18, STATE(0, 0)), message(18, STATE(0, 1)), message(21, b"", (21,)), message(15), message(99),
]  # fmt: skip


@given(st.lists(st.sampled_from(ALPHABET), max_size=30), st.lists(st.sampled_from(ALPHABET), max_size=10))
def test_a_successor_goes_on_exactly_where_a_session_was(before, after):
    ours = session()
    held: dict[int, int] = {}
    served: QueueStarted | None = None
    for each in before:
        try:
            events = ours.take(each)
        except ProtocolError:
            return
        for event in events:
            if isinstance(event, QueueStarted | QueueStopped):
                served = event if isinstance(event, QueueStarted) else None
                ours.stopped_at += 1
        if each.code in WITH_DESCRIPTORS:
            held.pop(each.code, None)
            held.update((each.code, each.descriptors[0]) for _ in each.descriptors)
    successor = session()
    resumed = [event for event in successor.resume(ours.state(), held) if isinstance(event, QueueResumed)]
    assert resumed == ([QueueResumed(served.layout, served.event_index, 12)] if served else [])
    assert successor.state() == ours.state()
    assert follow(successor, after) == follow(ours, after)
