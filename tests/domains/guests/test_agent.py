"""The agent's protocol as the host sees it, against a guest that sends what it likes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.guests.agent import AgentSession
from domains.guests.agent_events import Exited, Failed, Faulted, InputTaken, Lost, Output, Ready, Stopping
from domains.guests.agent_frames import (
    HEADER,
    INPUT_BYTES,
    INPUT_WINDOW,
    LINE_WINDOW,
    OUTPUT_WINDOW,
    CommandId,
    OutputStream,
    ShutdownMode,
)
from kernel.abi.status import Refused

READY, FAILED, STDOUT, STDERR, EXIT, CREDIT, STOPPING, ERROR, GOT = range(0x81, 0x8A)
HELLO = 0x01


def frame(kind: int, command: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(b"TVA1", kind, 0, command, len(payload)) + payload


def ready(nonce: int = 0) -> bytes:
    return frame(READY, 0, struct.pack("<QI", nonce, 1) + b"6.1\0boot\0\0")


def got(size: int) -> bytes:
    return frame(GOT, 0, struct.pack("<I", size))


def running(*argvs: bytes) -> tuple[AgentSession, list[CommandId]]:
    session = AgentSession()
    assert session.receive(ready()) == [Ready("6.1", "boot", "")]
    return session, [session.start([argv]) for argv in argvs]


def sent(session: AgentSession) -> list[tuple[int, int, bytes]]:
    """All that the session sends to a guest that reads at once, as frames."""
    data = b""
    while piece := session.take_outgoing():
        data += piece
        session.receive(got(len(piece)))
    frames = []
    while data:
        _, kind, _, command, length = HEADER.unpack_from(data)
        frames.append((kind, command, data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    return frames


def test_a_start_has_counted_words_environment_and_folder():
    session, _ = running()
    session.start([b"a", b""], {b"K": b"v"}, b"/tmp")
    assert sent(session) == [(0x02, 1, b"\x02\0\x01\0a\0\0K=v\0/tmp\0")]


def test_nothing_is_started_before_ready_nor_beyond_64():
    with pytest.raises(Refused, match="booting"):
        AgentSession().start([b"a"])
    session, _ = running(*[b"a"] * 64)
    with pytest.raises(Refused, match="64 commands run"):
        session.start([b"a"])


@pytest.mark.parametrize("argv", [[], [b"a\0b"], [b"x" * 40_000], [b"x"] * 2000])
def test_a_command_that_does_not_fit_is_refused(argv):
    session, _ = running()
    with pytest.raises(Refused):
        session.start(argv)
    assert session.running == frozenset()


FRAMES = (
    frame(STDOUT, 1, b"out") + frame(STDERR, 1, b"\0\xff") + b"\0" * 5
    + frame(FAILED, 2, b"\x02\0\0\0No such file") + frame(EXIT, 1, b"\0\x07") + frame(EXIT, 3, b"\x01\x09")
    + frame(STOPPING, 0, b"\x01")
)  # fmt: skip
EVENTS = [
    Output(CommandId(1), OutputStream.STDOUT, b"out"),
    Output(CommandId(1), OutputStream.STDERR, b"\0\xff"),
    Failed(CommandId(2), 2, "No such file"),
    Exited(CommandId(1), 7, None),
    Exited(CommandId(3), None, 9),
    Stopping(ShutdownMode.REBOOT),
]


@given(st.lists(st.integers(1, 40), max_size=20))
def test_events_are_the_same_however_the_bytes_are_cut(cuts):
    session, _ = running(b"a", b"b", b"c")
    events, rest = [], FRAMES
    for cut in cuts:
        events += session.receive(rest[:cut])
        rest = rest[cut:]
    assert events + session.receive(rest) == EVENTS


def test_input_goes_as_far_as_the_window_and_on_when_it_is_taken():
    session, (command,) = running(b"cat")
    assert session.send_input(command, bytes(INPUT_WINDOW + 1)) == INPUT_WINDOW
    assert session.send_input(command, b"x") == 0
    assert session.receive(frame(CREDIT, command, struct.pack("<I", 10))) == [InputTaken(command, 10)]
    assert session.send_input(command, bytes(11)) == 10
    frames = sent(session)
    assert sum(len(payload) for kind, _, payload in frames if kind == 0x03) == INPUT_WINDOW + 10
    assert max(len(payload) for _, _, payload in frames) == INPUT_BYTES


def test_no_more_is_on_the_line_than_the_guest_has_got():
    session, _ = running(b"cat")
    session.start([b"x" * 10000])
    assert len(session.take_outgoing()) == LINE_WINDOW
    assert session.take_outgoing() == b""
    session.receive(got(1024))
    assert len(session.take_outgoing()) == 1024
    session.receive(got(100_000))
    assert len(session.take_outgoing()) == LINE_WINDOW


def test_a_frame_that_is_not_long_goes_whole_or_not_at_all():
    """So that a death of ours leaves no half of one. The guest tells of what it got only when that is 1024 bytes."""
    session, (command,) = running(b"cat")
    sent(session)
    session.send_input(command, bytes(2 * INPUT_BYTES))
    assert session.take_outgoing() == frame(0x03, command, bytes(INPUT_BYTES))
    assert session.take_outgoing() == b""
    session.receive(got(1024))
    assert session.take_outgoing() == frame(0x03, command, bytes(INPUT_BYTES))


def test_a_successor_greets_an_agent_that_was_ready_before():
    assert AgentSession(life=1).take_outgoing() == b""
    session = AgentSession(life=2, known=True)
    nonce = 2 << 32 | 1
    assert session.take_outgoing() == frame(HELLO, 0, struct.pack("<Q", nonce))
    assert session.receive(frame(STDOUT, 1, b"to the one before") + ready(1)) == []
    assert session.receive(ready(nonce)) == [Ready("6.1", "boot", "")]


def test_taken_output_is_told_in_portions_and_never_more_than_came():
    session, (command,) = running(b"yes")
    sent(session)
    for _ in range(8):
        session.receive(frame(STDOUT, command, bytes(4096)))
    session.taken(command, OutputStream.STDOUT, 4096)
    assert sent(session) == []
    session.taken(command, OutputStream.STDOUT, OUTPUT_WINDOW - 4096)
    assert sent(session) == [(0x06, command, struct.pack("<BI", 1, OUTPUT_WINDOW))]
    with pytest.raises(ValueError, match="1 bytes taken of 0"):
        session.taken(command, OutputStream.STDOUT, 1)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"garbage bytes", "bad frame"),
        (frame(0x40), "bad frame"),
        (frame(STDOUT, 1, bytes(4097)), "bad frame"),
        (frame(STDOUT, 1), "bad frame"),
        (frame(STDOUT, 9, b"x"), "does not run"),
        (frame(EXIT, 1, b"\x02\0"), "bad EXIT"),
        (frame(STOPPING, 0, b"\x07"), "bad STOPPING"),
        (frame(CREDIT, 1, struct.pack("<I", 1)), "more input taken"),
        (b"".join(frame(STDOUT, 1, bytes(4096)) for _ in range(9)), "past its window"),
    ],
)
def test_a_guest_that_breaks_the_protocol_loses_its_commands_and_gets_a_new_start(bad, what):
    session, (command,) = running(b"a")
    sent(session)
    *_, fault, lost = session.receive(bad)
    assert isinstance(fault, Faulted)
    assert what in fault.what
    assert not fault.by_us
    assert lost == Lost(command)
    ((kind, _, nonce),) = sent(session)
    assert kind == HELLO
    assert session.receive(b"noise TVA1\x81" + frame(STDOUT, 1, b"late") + ready(int.from_bytes(nonce, "little"))) == [
        Ready("6.1", "boot", "")
    ]
    assert session.start([b"b"])


def test_the_agents_own_word_of_a_broken_protocol_is_told_as_ours():
    session, (command,) = running(b"a")
    assert session.receive(frame(ERROR, 0, b"bad frame")) == [Faulted("bad frame", {}, by_us=True), Lost(command)]


def test_an_agent_that_was_started_again_costs_its_commands_and_is_greeted():
    session, (command,) = running(b"a")
    session.send_input(command, bytes(INPUT_WINDOW))
    session.take_outgoing()
    assert session.receive(ready()) == [Lost(command)]
    assert not session.ready
    hello = session.take_outgoing()
    assert hello == frame(HELLO, 0, struct.pack("<Q", 1))
    assert session.receive(ready(1)) == [Ready("6.1", "boot", "")]
    session.start([b"b"])
    assert session.take_outgoing().startswith(b"TVA1\x02")


def test_a_half_sent_frame_is_ended_before_hello():
    session, _ = running(b"x" * 4096)
    first = session.take_outgoing()
    session.receive(b"garbage bytes")
    session.receive(got(len(first)))
    rest = session.take_outgoing()
    assert (first + rest).endswith(b"x\0\0" + frame(HELLO, 0, struct.pack("<Q", 1)))


def test_a_closed_session_hears_nothing_and_its_commands_are_lost():
    session, (command,) = running(b"a")
    assert session.close() == [Lost(command)]
    assert session.receive(ready()) == []


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([FRAMES, ready(), ready(1), got(9)])), max_size=30))
def test_nothing_that_a_guest_sends_breaks_the_session(pieces):
    session, commands = running(b"a", b"b", b"c")
    ends = {command: 0 for command in commands}
    events = []
    for piece in pieces:
        events += session.receive(piece)
        session.take_outgoing()
    events += session.close()
    for event in events:
        if isinstance(event, Exited | Failed | Lost):
            ends[event.command] += 1
    assert ends == dict.fromkeys(commands, 1)
