"""Packets: golden bytes, the msgpack package as a second reader, and what is no message."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi.codec import MAX_PACKET, PART_BYTES, Codec, Undecodable, cut, encode, pack_batches
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.ids import DomId, Generation, GrantRef, Peer, Port, RequestId, VbdHandle
from kernel.abi.status import Status
from kernel.abi.upcalls import (
    CoreRequested,
    DriverGivenUp,
    ImageProbe,
    PauseRequested,
    PeerReset,
    Reply,
    ReplyPart,
    SoftReset,
    SysrqRequested,
    Upcall,
    VbdBacking,
)

PEER = Peer(DomId(3), Generation(2))

GOLDEN = {
    h.Started(): "91 9101",
    h.Pong(7): "91 920207",
    h.PauseDone(7, "x"): "91 930307a178",
    d.DomctlPause(RequestId(1), DomId(3)): "91 93340103",
    d.DomctlUnpause(RequestId(1), DomId(3)): "91 93350103",
    d.SysctlRestart(RequestId(1), "blk"): "91 933b01a3626c6b",
    d.SysctlStandby(RequestId(1), "blk", False): "91 943f01a3626c6bc2",
    d.DomctlRename(RequestId(1), DomId(3), "web"): "91 94360103a3776562",
    d.DomctlTrigger(RequestId(1), DomId(3), d.Trigger.SYSRQ, "m"): "91 953c0103a57379737271a16d",
    d.DomctlDumpCore(RequestId(1), DomId(3)): "91 933d0103",
    h.OrderDone(7, "x"): "91 933e07a178",
    SysrqRequested(7, "m"): "91 93cca207a16d",
    CoreRequested(7): "91 92cca307",
    PauseRequested(7, True): "91 93cc8507c3",
    ImageProbe(7): "91 92cc9407",
    VbdBacking(VbdHandle(7)): "91 92cc9507",
    h.ImageProbed(7, 512, "b", "x"): "91 952e07cd0200a162a178",
    DriverGivenUp("blk", 6, ("web",)): "91 94cca1a3626c6b0691a3776562",
    h.SchedSoftReset("x"): "91 9211a178",
    h.GnttabMap(RequestId(1), PEER, GrantRef(5), h.Access.READ): "91 952101920302 0501".replace(" ", ""),
    h.EvtchnAllocUnbound(RequestId(9), Port(1), PEER, h.ChannelKind.DOORBELL): "91951809019203 0202".replace(" ", ""),
    h.EvtchnResolve(RequestId(2), "ab"): "91931b02a26162",
    h.XenbusConnect(RequestId(4), VbdHandle(1), PEER, GrantRef(2), GrantRef(3), Port(6)): "9197280401920302020306",
    SoftReset(): "91 91cc86",
    PeerReset(PEER): "91 92cc87 920302",
    Reply(RequestId(1), Status.ESTALE, why="x"): "919681 01".replace("81", "cc80") + "74c0a17800",
}


@pytest.mark.parametrize("message", list(GOLDEN), ids=lambda m: type(m).__name__)
def test_a_message_has_the_bytes_that_it_always_had(message):
    assert encode([message]).hex() == GOLDEN[message].replace(" ", "")


@pytest.mark.parametrize("length", [0, PART_BYTES - 5, PART_BYTES, 3 * PART_BYTES + 1])
def test_a_value_is_cut_only_where_it_must_be_and_can_be_put_together(length):
    value = ["x" * length]
    parts = cut(value)
    assert bool(parts) == (len(msgspec.msgpack.encode(value)) > PART_BYTES)
    assert all(len(encode([ReplyPart(RequestId(1), part)])) < MAX_PACKET for part in parts)
    assert not parts or msgspec.msgpack.decode(b"".join(parts)) == value


requests = st.integers(0, 0xFFFF_FFFF).map(RequestId)
peers = st.builds(Peer, st.integers(0, 0x7FFF).map(DomId), st.integers(0, 0xFFFF_FFFF).map(Generation))
refs = st.integers(1, 0xFFFF).map(GrantRef)
handles = st.integers(1, 0xFFFF_FFFF).map(VbdHandle)
messages = st.one_of(
    st.just(h.Started()),
    st.builds(h.Pong, st.integers(0, 0xFFFF_FFFF)),
    st.builds(h.GnttabGrant, requests, refs, peers, st.sampled_from(h.Access)),
    st.builds(h.XenbusFault, requests, handles, peers, st.text(max_size=512), st.text(max_size=512)),
    st.builds(h.XenbusStalled, requests, handles, peers),
    st.builds(h.SchedShutdown, requests, st.sampled_from(ShutdownReason), st.text(max_size=512)),
)


@given(st.lists(messages, max_size=50))
def test_a_batch_comes_back_as_it_was_sent(batch):
    assert Codec(h.Hypercall).decode(encode(batch)) == batch


@given(st.lists(messages, min_size=1, max_size=20))
def test_the_msgpack_package_reads_the_same(batch):
    plain = msgpack.unpackb(encode(batch), strict_map_key=True)
    assert [item[0] for item in plain] == [type(message).__struct_config__.tag for message in batch]
    assert Codec(h.Hypercall).decode(msgpack.packb(plain)) == batch


@given(st.lists(messages, min_size=1, max_size=20), st.data())
def test_one_bad_item_does_not_hide_the_others(batch, data):
    place = data.draw(st.integers(0, len(batch)))
    bad = data.draw(st.sampled_from([[0x7F], [0x02, "x"], [0x02, 1, 2], [0x02, -1], {}, 5, [], [["a"]]]))
    plain = [msgpack.unpackb(msgspec.msgpack.encode(message)) for message in batch]
    decoded = Codec(h.Hypercall).decode(msgpack.packb([*plain[:place], bad, *plain[place:]]))
    assert isinstance(decoded[place], Undecodable)
    assert decoded[:place] + decoded[place + 1 :] == batch


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_item_by_item_but_never_breaks_the_decoder(data):
    try:
        decoded = Codec(h.Hypercall).decode(data)
    except msgspec.DecodeError:
        return
    assert isinstance(decoded, list)


def test_a_packet_of_too_many_items_is_refused():
    with pytest.raises(msgspec.DecodeError, match="5000 messages"):
        Codec(h.Hypercall).decode(msgpack.packb([[1]] * 5000))


@given(
    st.lists(
        st.builds(h.XenbusFault, requests, handles, peers, st.text(max_size=512), st.just("e" * 500)), max_size=300
    )
)
def test_batches_are_split_below_the_bound_and_keep_their_order(batch):
    packets = pack_batches(batch)
    assert all(len(packet) <= MAX_PACKET for packet in packets)
    assert [message for packet in packets for message in Codec(h.Hypercall).decode(packet)] == batch


def test_an_upcall_with_a_value_of_any_shape_comes_back():
    reply = Reply(RequestId(1), Status.OK, {"a": [1, "b", None]})
    assert Codec(Upcall).decode(encode([reply])) == [reply]
