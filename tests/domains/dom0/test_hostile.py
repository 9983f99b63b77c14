"""An administrator's connection that does not keep to the protocol costs Dom0 nothing but an answer."""

import os

import msgspec
import pytest
import trio

from domains.dom0.sessions import MAX_COMMANDS, MAX_SESSIONS
from domains.runtime.channel import Channel
from kernel.abi import packet
from kernel.abi.admin import AdminExec, AdminInject, AdminList, AdminReply, AdminShutdown, Answer
from kernel.abi.codec import Codec, encode
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.guest_io import ExecEnded, ExecInput, ExecMessage, ExecOutput, ExecStart, Stream
from kernel.abi.status import Status
from kernel.abi.upcalls import AdminConnection, Misbehave
from tests.domains.dom0.asking import ask

INVALID = [
    b"\xc1",
    b"\x90",
    b"\xff" * 100,
    b"not msgpack",
    encode([AdminList(), AdminList()]),
    encode([AdminExec("-x")]),
    msgspec.msgpack.encode([[0x77, 1]]),
    msgspec.msgpack.encode([[0x01, "one too many"]]),
    msgspec.msgpack.encode({"a": 1}),
    b"\xdd\xff\xff\xff\xff",
    encode([AdminInject("d", "hang", 2**40)]),
]


class Caller:
    """A connection to Dom0 without the client."""

    def __init__(self, hypervisor, channel: Channel) -> None:
        self.channel = channel

    async def answers(self) -> list:
        """All that comes until the end of the connection."""
        got: list = []
        with trio.fail_after(15):
            while data := (await self.channel.receive()).data:
                got += Codec(AdminReply | ExecMessage).decode(data)
        self.channel.close()
        return got


@pytest.fixture
async def call(hypervisor):
    channels = []

    async def call() -> Caller:
        ours, theirs = packet.pair()
        await hypervisor.tell(AdminConnection(1000), theirs.detach())
        channels.append(Channel(ours.detach()))
        return Caller(hypervisor, channels[-1])

    yield call
    for channel in channels:
        channel.close()


async def test_dom0_answers_what_is_no_request_and_lives(client, call):
    for data in INVALID:
        caller = await call()
        await caller.channel.send(data)
        (answer,) = await caller.answers()
        assert answer.status in (Status.EINVAL, Status.ENOSYS), data
        assert answer.why
        assert "\n" not in answer.why
    assert await ask(client.list)


async def test_an_unknown_request_gets_enosys(call):
    caller = await call()
    await caller.channel.send(msgspec.msgpack.encode([[0x77]]))
    assert (await caller.answers())[0].status is Status.ENOSYS


async def test_a_packet_too_long_is_refused(call):
    caller = await call()
    await caller.channel.send(b"\x91" + b"x" * 100_000)
    assert (await caller.answers())[0].status is Status.EINVAL


async def test_descriptors_with_a_request_are_closed_and_refused(call, tmp_path):
    reading, writing = os.pipe()
    caller = await call()
    await caller.channel.send(encode([AdminList()]), [writing] * 10)
    assert (await caller.answers())[0].status is Status.EINVAL
    os.close(writing)
    assert os.read(reading, 1) == b"", "a copy of the writing end is still open"
    os.close(reading)


async def test_a_connection_that_says_nothing_is_ended(call):
    caller = await call()
    assert (await caller.answers())[0].status is Status.ETIMEDOUT


async def test_a_flood_of_connections_is_refused_beyond_the_bound_and_then_served_again(client, call):
    silent = [await call() for _ in range(MAX_SESSIONS)]
    extra = [await call() for _ in range(20)]
    for caller in extra:
        assert (await caller.answers())[0].status is Status.EAGAIN
    for caller in silent:
        caller.channel.close()
    with trio.fail_after(5):
        while True:
            caller = await call()
            await caller.channel.send(encode([AdminList()]))
            if (await caller.answers())[0].status is Status.OK:
                break


async def test_long_commands_leave_room_for_other_requests(hypervisor, client, call):
    hypervisor.add_guest()
    for _ in range(MAX_COMMANDS):
        caller = await call()
        await caller.channel.send(encode([AdminExec("web")]))
        assert (await caller.channel.receive()).data == encode([Answer(Status.OK)])
    caller = await call()
    await caller.channel.send(encode([AdminExec("web")]))
    assert (await caller.answers())[0].status is Status.EAGAIN
    assert await ask(client.list)


async def test_a_wait_ends_when_the_administrator_leaves(hypervisor, call):
    hypervisor.add_guest()
    caller = await call()
    await caller.channel.send(encode([AdminShutdown("web", ShutdownReason.POWEROFF, 3600)]))
    looks = [0, 0]
    for number in range(2):
        await trio.sleep(0.3)
        looks[number] = len(hypervisor.calls)
        if not number:
            assert looks[0] > 3
            caller.channel.close()
            await trio.sleep(0.1)
            looks[0] = len(hypervisor.calls)
    assert looks[0] == looks[1]


@pytest.mark.parametrize(
    "messages",
    [
        [ExecInput(b"before the start")],
        [ExecStart([b"sleep"]), ExecStart([b"sleep"])],
        [ExecOutput(Stream.STDOUT, b"not yours to say")],
        [ExecEnded(0)],
        [],
    ],
)
async def test_a_client_that_breaks_the_exec_protocol_is_told_and_its_command_ends(hypervisor, call, messages):
    guest = hypervisor.add_guest()
    caller = await call()
    await caller.channel.send(encode([AdminExec("web")]))
    await caller.channel.receive()
    await caller.channel.send(encode(messages))
    ended = (await caller.answers())[-1]
    assert ended.why.startswith("the client broke the exec protocol")
    assert not guest.running


async def test_an_upcall_that_is_not_for_dom0_is_logged_and_no_more(hypervisor, client):
    await hypervisor.tell(Misbehave("hang", 1))
    assert await ask(client.list)
    assert ("upcall.ignored", {"what": "Misbehave"}) in hypervisor.log.events
