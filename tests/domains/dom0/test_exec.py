"""Commands in guests, relayed between the real client and a guest's agent."""

import select

import pytest
import trio

from kernel.abi import hypercalls as h
from kernel.abi.codec import encode
from kernel.abi.guest_config import DomainState
from kernel.abi.guest_io import ExecEnded, ExecInput, ExecOutput, ExecStart, Stream
from kernel.abi.status import Status
from tests.domains.dom0.asking import ask, refused, until
from tests.domains.dom0.fake_hypervisor import DOM0
from triovisor.client import Client


@pytest.fixture
def guest(hypervisor):
    return hypervisor.add_guest()


async def test_both_streams_carry_every_byte_value_and_the_status_comes_back(guest, client):
    result = await ask(client.exec, "web", ["both"])
    assert result.stdout == bytes(range(256))
    assert result.stderr == bytes(reversed(range(256)))
    assert (result.status, result.signal, result.why) == (3, None, "")


async def test_input_of_megabytes_comes_back_whole_from_cat(guest, client):
    data = bytes(range(256)) * 8192
    assert (await ask(client.exec, "web", ["cat"], data)).stdout == data


async def test_arguments_need_not_be_text(guest, client):
    assert (await ask(client.exec, "web", [b"echo", b"\xff\x00\xfe", "ä"])).stdout == b"\xff\x00\xfe \xc3\xa4"


async def test_concurrent_commands_are_kept_apart(guest, client):
    results = {}

    async def one(number: int) -> None:
        data = bytes([number]) * 300_000
        results[number] = (await ask(client.exec, "web", ["cat"], data)).stdout == data

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert results == dict.fromkeys(range(8), True)
    assert guest.binds == 1


async def test_a_command_that_ends_before_its_input_does_loses_nothing(guest, client):
    result = await ask(client.exec, "web", ["ignorant"], b"x" * 2_000_000)
    assert (result.stdout, result.status) == (b"done", 0)


async def test_ports_are_given_back_when_commands_end(hypervisor, guest, client):
    for _ in range(3):
        await ask(client.exec, "web", ["echo"])
    await until(lambda: len(hypervisor.ports) == 1)


async def test_a_guest_that_dies_under_a_command_ends_it_with_a_clear_word(hypervisor, guest, client, nursery):
    results = []

    async def run() -> None:
        results.append(await ask(client.exec, "web", ["sleep"]))

    for _ in range(8):
        nursery.start_soon(run)
    await until(lambda: guest.writes == 8)
    await guest.die()
    await until(lambda: len(results) == 8)
    assert {(r.stdout, r.status, r.signal, r.why) for r in results} == {
        (b"asleep", None, None, "guest web ended while the command ran")
    }
    await until(lambda: not hypervisor.ports)


async def test_the_next_incarnation_of_a_guest_gets_its_own_agent_channel(hypervisor, guest, client):
    assert (await ask(client.exec, "web", ["echo", "1"])).status == 0
    await guest.die()
    successor = hypervisor.add_guest("web", generation=2)
    assert (await ask(client.exec, "web", ["echo", "2"])).stdout == b"2"
    assert successor.binds == 1


async def test_a_guest_that_lets_go_of_a_command_is_not_said_to_have_ended(guest, client):
    async def let_go(command):
        pass

    guest.programs[b"let-go"] = let_go
    result = await ask(client.exec, "web", ["let-go"])
    assert (result.status, result.signal) == (None, None)
    assert result.why == "guest web let go of the command while it ran"


@pytest.mark.parametrize(
    "messages",
    [
        [ExecInput(b"not yours to say")],
        [ExecEnded(0), ExecOutput(Stream.STDOUT, b"after the end")],
        [ExecEnded(1, 9)],
        [ExecOutput(Stream.STDOUT, b"x" * 16385)],
        [ExecStart([b"sh"])],
    ],
)
async def test_a_guest_that_breaks_the_protocol_is_named(guest, client, messages):
    async def break_it(command):
        await command.channel.send(encode(messages))
        await trio.sleep_forever()

    guest.programs[b"break"] = break_it
    result = await ask(client.exec, "web", ["break"])
    assert result.why.startswith("guest web broke the exec protocol")


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\x90", b"x" * 70_000])
async def test_garbage_from_a_guest_harms_only_its_command(guest, client, data):
    async def garbage(command):
        await command.channel.send(data)

    guest.programs[b"garbage"] = garbage
    result = await ask(client.exec, "web", ["garbage"])
    assert result.status is None
    assert result.why.startswith("guest web")
    assert (await ask(client.exec, "web", ["echo", "ok"])).stdout == b"ok"


async def test_descriptors_from_a_guest_are_closed_and_end_the_command(guest, client):
    async def give(command):
        await command.channel.send(encode([ExecOutput(Stream.STDOUT, b"x")]), [command.channel.socket.fileno()])
        await trio.sleep_forever()

    guest.programs[b"give"] = give
    assert "descriptors" in (await ask(client.exec, "web", ["give"])).why


async def test_a_guest_that_talks_on_its_agent_channel_loses_it(hypervisor, guest, client):
    await ask(client.exec, "web", ["echo"])
    await guest.agent.send(b"anything")
    await until(lambda: any(event == "agent.broke_abi" for event, _ in hypervisor.log.events))
    await until(lambda: not hypervisor.ports)


def _open_slowly(client: Client, read_after: trio.Event, got: list) -> None:
    with client.command("web", ["flood", "200"]) as command:
        trio.from_thread.run(read_after.wait)
        got.append(_drain(command))


def _drain(command) -> int:
    total = 0
    while True:
        select.select([command], [], [])
        for message in command.take():
            if isinstance(message, ExecEnded):
                return total
            total += len(message.data)


async def test_a_slow_reader_holds_up_its_own_command_alone_and_nothing_grows(guest, client, nursery):
    read = trio.Event()
    got: list[int] = []
    nursery.start_soon(trio.to_thread.run_sync, _open_slowly, client, read, got)
    await until(lambda: guest.running == 1)
    await trio.sleep(0.1)
    assert guest.running == 1, "the flood of 3 MB cannot have been taken by anybody"
    assert (await ask(client.exec, "web", ["echo", "meanwhile"])).stdout == b"meanwhile"
    read.set()
    await until(lambda: got)
    assert got == [200 * 16384]


def _start_and_leave(client: Client, argv: list, stdin_chunks: int, entered: trio.Event) -> None:
    with client.command("web", argv) as command:
        for _ in range(stdin_chunks):
            while not command.offer_input(b"i" * 16384):
                trio.from_thread.run(trio.sleep, 0.01)
        trio.from_thread.run(entered.wait)


async def test_a_client_that_leaves_kills_its_command(hypervisor, guest, client, nursery):
    leave = trio.Event()
    nursery.start_soon(trio.to_thread.run_sync, _start_and_leave, client, ["sleep"], 0, leave)
    await until(lambda: guest.running == 1)
    leave.set()
    await until(lambda: guest.killed == [b"sleep"])
    await until(lambda: len(hypervisor.ports) == 1)


async def test_a_client_that_leaves_is_missed_while_the_command_takes_no_input(guest, client, hypervisor, nursery):
    """What he has sent is still queued then, and hides the end of his connection."""
    leave = trio.Event()

    async def send() -> None:
        with trio.move_on_after(1):
            await trio.to_thread.run_sync(_start_and_leave, client, ["deaf"], 16, leave)

    nursery.start_soon(send)
    await until(lambda: guest.running == 1)
    await trio.sleep(0.5)
    leave.set()
    await until(lambda: any(event == "command.ended" and f["left"] for event, f in hypervisor.log.events))


async def test_a_command_gets_a_signal(guest, client):
    def run() -> tuple[int | None, int | None]:
        with client.command("web", ["signalled"]) as command:
            command.signal(15)
            while True:
                for message in command.take():
                    if isinstance(message, ExecEnded):
                        return message.status, message.signal

    assert await ask(run) == (None, 15)


async def test_a_booting_guest_is_waited_for(hypervisor, guest, client, nursery):
    guest.port_open = False
    results = []

    async def run() -> None:
        results.append(await ask(client.exec, "web", ["echo", "up"]))

    nursery.start_soon(run)
    await until(lambda: sum(isinstance(call, h.EvtchnBindInterdomain) for call in hypervisor.calls) > 2)
    guest.port_open = True
    await until(lambda: results)
    assert results[0].stdout == b"up"


async def test_a_guest_that_ends_while_it_is_waited_for_is_reported_at_once(hypervisor, guest, client, nursery):
    guest.port_open = False
    errors = []

    async def run() -> None:
        errors.append(await refused(client.exec, "web", ["echo"]))

    nursery.start_soon(run)
    await until(lambda: any(isinstance(call, h.EvtchnBindInterdomain) for call in hypervisor.calls))
    await guest.die()
    await until(lambda: errors)
    assert errors[0].status is Status.EHOSTDOWN
    assert "web is not running" in errors[0].why


async def test_a_guest_that_ends_between_offer_and_binding_is_reported_at_once(hypervisor, guest, client, nursery):
    guest.takes_offers = False
    errors = []

    async def run() -> None:
        errors.append(await refused(client.exec, "web", ["echo"]))

    nursery.start_soon(run)
    await until(lambda: len(hypervisor.ports) == 2)
    await guest.die()
    await until(lambda: errors)
    assert errors[0].status is Status.EHOSTDOWN
    await until(lambda: not hypervisor.ports)


async def test_a_crashed_guest_takes_no_commands(hypervisor, client):
    hypervisor.add_guest("web", state=DomainState.CRASHED)
    assert (await refused(client.exec, "web", ["echo"])).status is Status.EHOSTDOWN


@pytest.mark.parametrize("name", ["blkback", "dom0"])
async def test_commands_run_in_guests_alone(hypervisor, client, name):
    assert (await refused(client.exec, name, ["echo"])).status is Status.EINVAL
    assert not any(isinstance(call, h.EvtchnBindInterdomain) for call in hypervisor.calls)


async def test_a_native_guest_has_no_agent_and_its_console_is_named_instead(hypervisor, client):
    hypervisor.add_guest("web", kind="native")
    refusal = await refused(client.exec, "web", ["echo"])
    assert refusal.status is Status.EINVAL
    assert "tv dmesg web" in refusal.why


@pytest.mark.parametrize("argv", [[], [""], ["x"] * 257, ["y" * 32769], ["z" * 30000] * 3])
async def test_a_command_line_that_cannot_be_sent_is_refused_here(guest, client, argv):
    assert (await refused(client.exec, "web", argv)).status is Status.EINVAL


async def test_a_word_on_a_port_that_nobody_waits_for_is_dropped(hypervisor, guest, client):
    hypervisor.ports[999] = guest.peer
    stray = await hypervisor.bind_from_guest(guest.peer, 999)
    with trio.fail_after(5):
        assert (await stray.receive()).data == b""
    stray.close()
    assert DOM0 not in hypervisor.guests
    assert (await ask(client.exec, "web", ["echo", "on"])).stdout == b"on"
