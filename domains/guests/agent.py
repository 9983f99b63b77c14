"""Host side of the guest agent's protocol, sans-I/O. The protocol itself: `triovisor/provision/guest/agent.c`.

Bytes from the guest go into `AgentSession.receive`, which returns events; what is to be sent comes out of
`AgentSession.take_outgoing`. The guest is not trusted: what it sends wrongly becomes a `Faulted`, and all that it can
make us hold is bounded by the windows of the commands that we started.

A line that lost step is mended by the session itself: it sends HELLO, and hears nothing before the READY that answers.
"""

import enum
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from domains.guests.agent_events import Event, Exited, Failed, Faulted, InputTaken, Lost, Output, Ready, Stopping
from domains.guests.agent_frames import (
    CREDIT_BYTES,
    HEADER,
    INPUT_BYTES,
    INPUT_WINDOW,
    LINE_WINDOW,
    MAGIC,
    MAX_COMMANDS,
    OUTPUT_WINDOW,
    VERSION,
    WHOLE_BYTES,
    CommandId,
    From,
    OutputStream,
    ShutdownMode,
    To,
    fits,
    pack_frame,
    pack_start,
)
from kernel.abi.status import Refused, Status

__all__ = ["AgentSession"]


class _GuestFault(Exception):
    """The guest broke the agent's protocol. `evidence`: the bytes or figures that show it."""

    def __init__(self, what: str, **evidence: object) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


NONCE_BYTES = 8
LIFE_SHIFT = 32
"""Above the nonces of one session."""

_WANTED_BYTES: dict[int, int] = {From.READY: NONCE_BYTES, From.GOT: 4}
"""What is looked at while out of step, and how much of its payload."""


class _State(enum.Enum):
    BOOTING = enum.auto()
    READY = enum.auto()
    SYNCING = enum.auto()
    STOPPING = enum.auto()
    CLOSED = enum.auto()


@dataclass(slots=True)
class _Window:
    """One output stream's: what the guest may send, what we hold, what was taken and not yet told."""

    unused: int = OUTPUT_WINDOW
    untaken: int = 0
    untold: int = 0


@dataclass(slots=True)
class _Command:
    input_room: int = INPUT_WINDOW
    input_over: bool = False
    outputs: dict[OutputStream, _Window] = field(default_factory=lambda: {stream: _Window() for stream in OutputStream})


class AgentSession:
    """One guest's agent as the host sees it: which commands run, and how much each may still send."""

    def __init__(self, *, life: int = 0, known: bool = False) -> None:
        """`life`: how many sessions were on this line before. `known`: the agent was ready in one of them, so that this
        begins with HELLO."""
        self._state = _State.BOOTING
        self._incoming = bytearray()
        self._outgoing: deque[bytes] = deque()
        self._cut = b""
        self._line_room = LINE_WINDOW
        self._commands: dict[CommandId, _Command] = {}
        self._last_id = 0
        self._nonce = life << LIFE_SHIFT
        if known:
            self.resync()

    @property
    def ready(self) -> bool:
        """Commands can be started."""
        return self._state is _State.READY

    @property
    def running(self) -> frozenset[CommandId]:
        return frozenset(self._commands)

    # ---- from us to the guest ----

    def start(self, argv: Sequence[bytes], env: Mapping[bytes, bytes] | None = None, folder: bytes = b"") -> CommandId:
        """Run a program, looked up in the agent's PATH. `env` is added to the agent's own; `folder`: "/" by default.

        Refuses EAGAIN before READY and beyond 64 commands, EINVAL what does not fit into 32 KiB and 1024 words or has
        a NUL in it. One of `Exited`, `Failed` and `Lost` is its last event.
        """
        if self._state is not _State.READY:
            raise Refused(Status.EAGAIN, f"the guest's agent is {self._state.name.lower()}")
        if len(self._commands) >= MAX_COMMANDS:
            raise Refused(Status.EAGAIN, f"{MAX_COMMANDS} commands run in the guest: wait for one to end")
        payload = pack_start(argv, env or {}, folder)
        command = self._free_id()
        self._commands[command] = _Command()
        self._send(To.START, command, payload)
        return command

    def input_room(self, command: CommandId) -> int:
        """How many bytes `send_input` takes now; 0 for a command that has ended."""
        known = self._commands.get(command)
        return known.input_room if known and not known.input_over else 0

    def send_input(self, command: CommandId, data: bytes) -> int:
        """Give a command what fits of `data`. Returns how many bytes that were: the rest waits for `InputTaken`."""
        size = min(len(data), self.input_room(command))
        for start in range(0, size, INPUT_BYTES):
            self._send(To.STDIN, command, data[start : min(start + INPUT_BYTES, size)])
        if size:
            self._commands[command].input_room -= size
        return size

    def end_input(self, command: CommandId) -> None:
        known = self._commands.get(command)
        if known and not known.input_over:
            known.input_over = True
            self._send(To.EOF, command)

    def signal(self, command: CommandId, number: int) -> None:
        """Send a signal to the command's process group. A command that has ended gets none."""
        if command in self._commands:
            self._send(To.SIGNAL, command, struct.pack("<I", number))

    def taken(self, command: CommandId, stream: OutputStream, size: int) -> None:
        """`size` bytes of that stream's `Output` are out of the way: the guest may send as many more."""
        known = self._commands.get(command)
        if known is None:
            return
        window = known.outputs[stream]
        if size > window.untaken:
            raise ValueError(f"{size} bytes taken of {window.untaken}")
        window.untaken -= size
        window.untold += size
        if window.untold >= CREDIT_BYTES:
            self._send(To.CREDIT, command, struct.pack("<BI", stream, window.untold))
            window.unused += window.untold
            window.untold = 0

    def shut_down(self, mode: ShutdownMode, grace_ms: int) -> None:
        """End the guest: its processes get SIGTERM and so long to end (at most a minute), then SIGKILL.

        Refuses EAGAIN before READY.
        """
        if self._state is not _State.READY:
            raise Refused(Status.EAGAIN, f"the guest's agent is {self._state.name.lower()}")
        self._send(To.SHUTDOWN, 0, struct.pack("<BI", mode, grace_ms))

    def resync(self) -> list[Event]:
        """Start anew: all commands are lost and killed, and nothing is heard until the READY that answers this."""
        self._state = _State.SYNCING
        self._nonce += 1
        self._incoming.clear()
        self._outgoing.clear()
        self._send_hello()
        return self._lose_all()

    def close(self) -> list[Event]:
        """The line has ended, with the guest: what still ran is lost."""
        self._state = _State.CLOSED
        return self._lose_all()

    def take_outgoing(self) -> bytes:
        """The bytes that are to be sent now, all of them: no more than the line takes."""
        taken = bytearray()
        while self._line_room > 0 and (self._cut or self._outgoing):
            if not self._cut and self._line_room < len(self._outgoing[0]) <= WHOLE_BYTES:
                break
            frame = self._cut or self._outgoing.popleft()
            taken += frame[: self._line_room]
            self._cut = frame[self._line_room :]
            self._line_room -= len(frame) - len(self._cut)
        return bytes(taken)

    def _send(self, kind: To, command: int, payload: bytes = b"") -> None:
        self._outgoing.append(pack_frame(kind, command, payload))

    def _send_hello(self) -> None:
        self._send(To.HELLO, 0, struct.pack("<Q", self._nonce))

    def _send_hello_to_the_deaf(self) -> None:
        """The agent hears nothing else, so what we were in the middle of is void; and it may never tell what its
        predecessor got. HELLO is short enough to be beyond the window."""
        self._cut = b""
        self._line_room = HEADER.size + NONCE_BYTES
        self._outgoing.clear()
        self._send_hello()

    def _free_id(self) -> CommandId:
        while True:
            self._last_id = self._last_id % 0xFFFF + 1
            if self._last_id not in self._commands:
                return CommandId(self._last_id)

    def _lose_all(self) -> list[Event]:
        lost: list[Event] = [Lost(command) for command in self._commands]
        self._commands.clear()
        return lost

    # ---- from the guest to us ----

    def receive(self, data: bytes) -> list[Event]:
        """The events in what the guest sent, in order."""
        if self._state is _State.CLOSED:
            return []
        self._incoming += data
        events: list[Event] = []
        while True:
            try:
                frame = self._next_frame()
                if frame is None:
                    return events
                events += self._on_frame(*frame)
            except _GuestFault as fault:
                return [*events, Faulted(fault.what, fault.evidence), *self.resync()]

    def _next_frame(self) -> tuple[From, CommandId, bytes] | None:
        """The next whole frame, if it has come."""
        if self._state is _State.SYNCING and not self._skip_to_answer():
            return None
        self._skip_filler()
        if len(self._incoming) < HEADER.size:
            return None
        header = bytes(self._incoming[: HEADER.size])
        magic, kind, zero, command, length = HEADER.unpack(header)
        if magic != MAGIC or zero or not fits(kind, length):
            raise _GuestFault("bad frame from the agent", header=header.hex())
        end = HEADER.size + length
        if len(self._incoming) < end:
            return None
        payload = bytes(self._incoming[HEADER.size : end])
        del self._incoming[:end]
        return From(kind), CommandId(command), payload

    def _skip_to_answer(self) -> bool:
        """Drop what stands before the READY that answers our HELLO; only GOT counts, and an agent that starts again.

        False: the answer has not come, or not enough of it.
        """
        while True:
            at = self._incoming.find(MAGIC)
            del self._incoming[: at if at >= 0 else max(0, len(self._incoming) - len(MAGIC) + 1)]
            if at < 0 or len(self._incoming) < HEADER.size:
                return False
            kind = self._incoming[4]
            end = HEADER.size + _WANTED_BYTES.get(kind, 0)
            if len(self._incoming) < end:
                return False
            told = int.from_bytes(self._incoming[HEADER.size : end], "little")
            if kind == From.READY and told == self._nonce:
                return True
            if kind == From.READY and told == 0:
                self._send_hello_to_the_deaf()
            elif kind == From.GOT:
                self._on_got(told)
            del self._incoming[0]

    def _skip_filler(self) -> None:
        if self._incoming[:1] == b"\0":
            del self._incoming[: len(self._incoming) - len(self._incoming.lstrip(b"\0"))]

    def _on_frame(self, kind: From, command: CommandId, payload: bytes) -> list[Event]:
        match kind:
            case From.READY:
                return self._on_ready(payload)
            case From.STOPPING:
                return self._on_stopping(payload)
            case From.ERROR:
                lost = self.resync()
                self._send_hello_to_the_deaf()
                return [Faulted(payload.decode(errors="replace"), {}, by_us=True), *lost]
            case From.GOT:
                self._on_got(int.from_bytes(payload, "little"))
                return []
        known = self._commands.get(command)
        if known is None:
            raise _GuestFault("a frame for a command that does not run", kind=kind.name, command=command)
        match kind:
            case From.STDOUT | From.STDERR:
                return [_on_output(known, command, OutputStream(kind - From.STDOUT + 1), payload)]
            case From.CREDIT:
                return [_on_input_taken(known, command, payload)]
        end = _on_exit(command, payload) if kind is From.EXIT else _on_failed(command, payload)
        del self._commands[command]
        return [end]

    def _on_ready(self, payload: bytes) -> list[Event]:
        """The first READY, or the one that answers HELLO. Any other is from an agent that was started again: it knows
        of no command, and may read the second half of a frame of ours."""
        version = int.from_bytes(payload[8:12], "little")
        words = payload[12:].split(b"\0")
        if version != VERSION or len(words) != 4 or words[3]:
            raise _GuestFault("bad READY from the agent", version=version, payload=payload.hex())
        release, boot_id, trouble = (word.decode(errors="replace") for word in words[:3])
        if self._state is _State.READY:
            lost = self.resync()
            self._send_hello_to_the_deaf()
            return lost
        self._state = _State.READY
        self._line_room = LINE_WINDOW
        return [Ready(release, boot_id, trouble)]

    def _on_got(self, size: int) -> None:
        """One that tells of more than we sent only harms its own line."""
        self._line_room = min(LINE_WINDOW, self._line_room + size)

    def _on_stopping(self, payload: bytes) -> list[Event]:
        if payload[0] not in ShutdownMode._value2member_map_:
            raise _GuestFault("bad STOPPING from the agent", mode=payload[0])
        self._state = _State.STOPPING
        return [Stopping(ShutdownMode(payload[0]))]


def _on_output(known: _Command, command: CommandId, stream: OutputStream, payload: bytes) -> Output:
    window = known.outputs[stream]
    if len(payload) > window.unused:
        raise _GuestFault("output past its window", command=command, stream=stream.name, size=len(payload))
    window.unused -= len(payload)
    window.untaken += len(payload)
    return Output(command, stream, payload)


def _on_input_taken(known: _Command, command: CommandId, payload: bytes) -> InputTaken:
    size = int.from_bytes(payload, "little")
    if size > INPUT_WINDOW - known.input_room:
        raise _GuestFault("more input taken than was sent", command=command, size=size)
    known.input_room += size
    return InputTaken(command, size)


def _on_exit(command: CommandId, payload: bytes) -> Exited:
    by_signal, value = payload
    if by_signal > 1:
        raise _GuestFault("bad EXIT from the agent", command=command, payload=payload.hex())
    return Exited(command, None, value) if by_signal else Exited(command, value, None)


def _on_failed(command: CommandId, payload: bytes) -> Failed:
    return Failed(command, int.from_bytes(payload[:4], "little"), payload[4:].decode(errors="replace"))
