"""The console protocol on the wire: golden bytes, round trips, and what is out of bounds."""

from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.abi import console_io as c
from kernel.abi.codec import MAX_PACKET, Codec, Undecodable, encode
from kernel.abi.ids import DomId, Generation, Peer

PEER = Peer(DomId(3), Generation(2))
GOLDEN = [
    (c.ConsoleAttach(PEER, 7, 256, None, False, True), "97019203 0207cd0100c0c2c3"),
    (c.ConsoleKeys(300, b"ls\r"), "9302cd012cc4036c730d"),
    (c.ConsoleSize(24, 80), "93031850"),
    (c.ConsoleOutput(5, b"\x1b"), "930405c4011b"),
    (c.ConsoleRole(9, 2), "93050902"),
    (c.ConsoleTaken(300), "9206cd012c"),
    (c.ConsoleEnded("no"), "9207a26e6f"),
]
numbers = st.integers(0, 2**63 - 1)
messages = st.one_of(
    st.builds(c.ConsoleKeys, numbers, st.binary(min_size=1, max_size=64)),
    st.builds(c.ConsoleSize, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    st.builds(c.ConsoleOutput, numbers, st.binary(max_size=64)),
    st.builds(c.ConsoleRole, numbers, numbers),
    st.builds(c.ConsoleTaken, numbers),
    st.builds(c.ConsoleEnded, st.text(max_size=64)),
)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_a_message_has_the_bytes_it_always_had(message, golden):
    assert encode([message]).hex() == "91" + golden.replace(" ", "")


def test_the_golden_bytes_have_every_message():
    assert {type(message) for message, _ in GOLDEN} == {c.ConsoleAttach, *get_args(c.ConsoleMessage)}


@given(st.lists(messages, max_size=8))
def test_messages_come_back_as_they_went_and_any_reader_can_follow(batch):
    packet = encode(batch)
    assert Codec(c.ConsoleMessage).decode(packet) == batch
    assert [plain[0] for plain in msgpack.unpackb(packet)] == [type(m).__struct_config__.tag for m in batch]


def test_a_piece_of_output_fits_a_packet_with_room():
    assert len(encode([c.ConsoleOutput(2**63 - 1, b"x" * c.OUTPUT_BYTES)])) < MAX_PACKET


@pytest.mark.parametrize(
    "message",
    [
        [0x02, 0, b""],
        [0x02, 0, b"x" * (c.KEYS_BYTES + 1)],
        [0x02, -1, b"x"],
        [0x02, 2**63, b"x"],
        [0x03, 65536, 1],
        [0x04, 0, b"x" * (c.OUTPUT_BYTES + 1)],
        [0x07, "x" * 513],
    ],
)
def test_a_message_out_of_bounds_is_none(message):
    (got,) = Codec(c.ConsoleMessage).decode(msgpack.packb([message]))
    assert isinstance(got, Undecodable)
