"""The store's messages on the wire: golden bytes, and what is out of bounds."""

from typing import get_args

import msgspec
import pytest

from kernel.abi import store_io as s
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.ids import DomId

GOLDEN = [
    (s.StoreRequest(7, 2, 300, b"a\0"), "95010702cd012cc4026100"),
    (s.StoreReply(7, 16, b"ENOENT\0"), "940207 10 c407454e4f454e5400"),
    (s.StoreEvent(9, b"a\0t\0"), "930309c40461007400"),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_a_message_has_the_bytes_it_always_had(message, golden):
    assert encode([message]).hex() == "91" + golden.replace(" ", "")


def test_the_golden_bytes_have_every_message():
    assert {type(message) for message, _ in GOLDEN} == {s.StoreRequest, *get_args(s.FromStore)}


def test_a_node_is_an_array_of_its_four_fields():
    assert msgspec.msgpack.encode(s.StoreNode("/a", "v", DomId(1))).hex() == "94a22f61a17601c0"


@pytest.mark.parametrize(
    "message",
    [
        [1, 0, 2, 0, b""],
        [1, 1 << 32, 2, 0, b""],
        [1, 1, -1, 0, b""],
        [1, 1, 2, 1 << 32, b""],
        [1, 1, 2, 0, bytes(4097)],
        [1, 1, 2, 0, "text"],
        [1, 1, 2, 0],
        [5, 1],
    ],
)
def test_what_is_out_of_bounds_is_no_message(message):
    (decoded,) = Codec(s.StoreRequest).decode(msgspec.msgpack.encode([message]))
    assert isinstance(decoded, Undecodable)
