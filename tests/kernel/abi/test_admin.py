"""The admin protocol, the exec protocol and a guest's configuration on the wire: golden bytes, and round trips."""

from typing import get_args

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.abi import admin, guest_io
from kernel.abi.codec import MAX_PACKET, Codec, Undecodable, encode
from kernel.abi.domctl import Trigger
from kernel.abi.guest_config import Action, DiskConfig, DomainInfo, DomainState, GuestConfig, ShutdownReason
from kernel.abi.guest_io import CHUNK_BYTES, ExecEnded, ExecInput, ExecOffer, ExecOutput, ExecSignal, ExecStart, Stream
from kernel.abi.ids import DomId, Generation
from kernel.abi.status import Status

GOLDEN = [
    (admin.AdminList(), "9101"),
    (admin.AdminInfo(), "9202c0"),
    (admin.AdminInfo("web"), "9202a3776562"),
    (admin.AdminShutdown("web", ShutdownReason.REBOOT, 1.5), "9404a37765 62 01 cb3ff8000000000000"),
    (admin.AdminDestroy("web"), "9205a3776562"),
    (admin.AdminExec("web"), "9206a3776562"),
    (admin.AdminDmesg(), "9207c0"),
    (admin.AdminDrivers(), "9108"),
    (admin.AdminInject("blk", "hang", 2), "9409a3626c6ba468616e6702"),
    (admin.AdminPause("web"), "9210a3776562"),
    (admin.AdminUnpause("web"), "9211a3776562"),
    (admin.AdminRestart("blk"), "9212a3626c6b"),
    (admin.AdminListLong(), "9115"),
    (admin.AdminRename("web", "b"), "9316a3776562a162"),
    (admin.AdminTrigger("web", Trigger.RESET), "9418a3776562a57265736574a0"),
    (admin.AdminDumpCore("web"), "9219a3776562"),
    (admin.AdminStandby("blk", True), "931aa3626c6bc3"),
    (admin.AdminConsole("web", 256, 7, 300, Generation(2), True), "9814a3776562cd010007cd012c02c3c2"),
    (admin.Part(b"\x00\xff"), "9220c40200ff"),
    (admin.Answer(Status.ENOENT, None, "no"), "942102c0a26e6f"),
    (ExecOffer(7), "920107"),
    (ExecStart([b"ls", b"-l"]), "920292c4026c73c4022d6c"),
    (ExecInput(b""), "9203c400"),
    (ExecSignal(15), "92040f"),
    (ExecOutput(Stream.STDERR, b"x"), "930502c40178"),
    (ExecEnded(0), "940600c0a0"),
    (ExecEnded(None, 9), "9406c009a0"),
]

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", fullmatch=True)
in_c = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
"""What a C string may hold: paths and words of a command line are some."""

paths = st.text(in_c, min_size=1, max_size=60)
vdevs = st.sampled_from([f"vd{letter}" for letter in "abcdefghijklmnop"])
disks = st.builds(DiskConfig, paths, vdevs, st.sampled_from(["rw", "ro"]), names)
configs = st.builds(
    GuestConfig,
    name=names,
    memory=st.integers(24, 65536),
    cpus=st.none() | st.just("0-1,3"),
    kernel=st.none() | paths,
    ramdisk=st.none() | paths,
    root=st.none() | vdevs.map("/dev/{}".format),
    type=st.sampled_from(["pv", "native"]),
    extra=st.text(in_c, max_size=80),
    program=st.none() | paths,
    args=st.lists(st.text(in_c, max_size=20), max_size=4),
    peers=st.lists(names, max_size=4),
    disk=st.lists(disks, max_size=16),
    on_poweroff=st.sampled_from(Action),
    on_reboot=st.sampled_from(Action),
    on_crash=st.sampled_from(Action),
)
requests = st.one_of(
    st.just(admin.AdminList()),
    st.just(admin.AdminListLong()),
    st.builds(admin.AdminRename, names, names),
    st.builds(admin.AdminUpdateConfig, names, configs),
    st.builds(admin.AdminTrigger, names, st.sampled_from(Trigger), st.sampled_from(["", "m", "9"])),
    st.builds(admin.AdminDumpCore, names),
    st.builds(admin.AdminStandby, names, st.booleans()),
    st.builds(admin.AdminInfo, st.none() | names),
    st.builds(admin.AdminCreate, configs, st.booleans()),
    st.builds(admin.AdminShutdown, names, st.sampled_from(ShutdownReason), st.floats(0, 3600)),
    st.builds(admin.AdminDestroy, names),
    st.builds(admin.AdminExec, names),
    st.builds(admin.AdminDmesg, st.none() | names),
    st.just(admin.AdminDrivers()),
    st.builds(
        admin.AdminInject,
        names,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=64),
        st.integers(1, 0xFFFF_FFFF),
    ),
    st.builds(admin.AdminPause, names),
    st.builds(admin.AdminUnpause, names),
    st.builds(admin.AdminRestart, names),
    st.builds(
        admin.AdminConsole,
        names,
        st.integers(0, 262144),
        st.integers(0, 2**63 - 1),
        st.none() | st.integers(0, 2**63 - 1),
        st.none() | st.integers(1, 0xFFFF_FFFF).map(Generation),
        st.booleans(),
        st.booleans(),
    ),
)
words = st.binary(max_size=40)
exec_messages = st.one_of(
    st.builds(ExecStart, st.lists(words, min_size=1, max_size=20)),
    st.builds(ExecInput, words),
    st.builds(ExecSignal, st.integers(1, 64)),
    st.builds(ExecOutput, st.sampled_from(Stream), words),
    st.builds(ExecEnded, st.none() | st.integers(0, 255), st.none() | st.integers(1, 64)),
)


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_a_message_has_the_bytes_it_always_had(message, golden):
    assert encode([message]).hex() == "91" + golden.replace(" ", "")


def test_the_golden_bytes_have_every_message():
    messages = (*get_args(admin.AdminRequest), *get_args(admin.AdminReply), guest_io.AgentMessage)
    without = {admin.AdminCreate, admin.AdminUpdateConfig}
    assert {type(message) for message, _ in GOLDEN} == {*messages, *get_args(guest_io.ExecMessage)} - without


@given(st.lists(requests, max_size=4))
def test_requests_come_back_as_they_went(messages):
    packet = encode(messages)
    assert Codec(admin.AdminRequest).decode(packet) == messages
    assert len(msgpack.unpackb(packet)) == len(messages)


@given(st.lists(exec_messages, max_size=8))
def test_exec_messages_come_back_as_they_went_and_any_reader_can_follow(messages):
    packet = encode(messages)
    assert Codec(guest_io.ExecMessage).decode(packet) == messages
    for plain, message in zip(msgpack.unpackb(packet), messages, strict=True):
        assert plain[0] == type(message).__struct_config__.tag


@given(configs)
def test_a_configuration_is_a_plain_map(config):
    packed = msgspec.msgpack.encode(config)
    assert msgspec.msgpack.decode(packed, type=GuestConfig) == config
    assert msgpack.unpackb(packed)["name"] == config.name


def test_a_domain_is_a_plain_map():
    info = DomainInfo(DomId(3), "web", "pv", DomainState.RUNNING, Generation(2), None, 64, 1, [0], 0.5, 1.0, "full", 1)
    assert msgspec.convert(msgpack.unpackb(msgspec.msgpack.encode(info)), DomainInfo) == info


def test_a_chunk_of_output_fits_a_packet_with_room():
    assert len(encode([ExecOutput(Stream.STDOUT, b"x" * CHUNK_BYTES)])) < MAX_PACKET // 2


@pytest.mark.parametrize(
    "message",
    [
        [0x02, "-x"],
        [0x02, "x" * 65],
        [0x02, "a/b"],
        [0x04, "web", 9],
        [0x04, "web", 0, -1.0],
        [0x09, "blk", "hang", 0],
        [0x09, "blk", "hang", 2**32],
        [0x14, "web", 262145],
        [0x14, "web", 0, 2**63],
        [0x14, "web", 0, 0, -1],
        [0x01, 1],
        [0x03, {"name": "web", "memory": 8}],
        [0x03, {"name": "web", "unknown": 1}],
        [0x03, {"name": "web", "disk": [{"target": "/x", "vdev": "sda"}]}],
    ],
)
def test_a_request_out_of_bounds_is_no_request(message):
    (got,) = Codec(admin.AdminRequest).decode(msgpack.packb([message]))
    assert isinstance(got, Undecodable)
    assert got.op == message[0]


@pytest.mark.parametrize(
    "message",
    [
        [0x02, []],
        [0x02, [b"x"] * 257],
        [0x02, [b"x" * 32769]],
        [0x03, b"x" * (CHUNK_BYTES + 1)],
        [0x03, "text"],
        [0x04, 0],
        [0x04, 65],
        [0x05, 3, b"x"],
        [0x06, 256, None, ""],
        [0x06, None, 0, ""],
        [0x06, None, None, "x" * 513],
    ],
)
def test_an_exec_message_out_of_bounds_is_none(message):
    (got,) = Codec(guest_io.ExecMessage).decode(msgpack.packb([message]))
    assert isinstance(got, Undecodable)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "web\n"},
        {"name": "web", "kernel": "/boot/\0"},
        {"name": "web", "extra": "a\0b"},
        {"name": "web", "root": "/dev/vda\n"},
        {"name": "web", "cpus": "0-99999999999"},
        {"name": "web", "cpus": "9" * 5000},
    ],
    ids=str,
)
def test_a_configuration_that_would_hurt_further_on_is_none(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, GuestConfig)
