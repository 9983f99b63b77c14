"""What happens on a guest's agent line, as the session tells it."""

from collections.abc import Mapping
from dataclasses import dataclass

from domains.guests.agent_frames import CommandId, OutputStream, ShutdownMode

__all__ = ["ConsoleLook", "Event", "Exited", "Failed", "Faulted", "InputTaken", "Lost", "Output", "Ready", "Stopping"]


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent runs. `trouble`: what went wrong as the guest came up, empty for nothing."""

    release: str
    boot_id: str
    trouble: str


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a command wrote. Say `AgentSession.taken` when they are out of the way, or no more come."""

    command: CommandId
    stream: OutputStream
    data: bytes


@dataclass(frozen=True, slots=True)
class InputTaken:
    """There is room for so many bytes more of a command's input."""

    command: CommandId
    size: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A command has ended, and all that it wrote has come. Exactly one of `status` and `signal` is given."""

    command: CommandId
    status: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A command could not be started."""

    command: CommandId
    errno: int
    why: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A command's end will never be known: its agent was lost, or the guest is."""

    command: CommandId


@dataclass(frozen=True, slots=True)
class ConsoleLook:
    """Of the console's input nobody has read so much, or more; 0 is certain. `by_lines`: a line that has not ended does
    not count."""

    unread: int
    by_lines: bool


@dataclass(frozen=True, slots=True)
class Stopping:
    """The guest goes down; nothing more comes."""

    mode: ShutdownMode


@dataclass(frozen=True, slots=True)
class Faulted:
    """The protocol was broken: by the guest, or as the guest's agent says (`by_us`) by us or by the line.

    Every command is lost. READY follows when the two are in step again.
    """

    what: str
    evidence: Mapping[str, object]
    by_us: bool = False


Event = Ready | ConsoleLook | Output | InputTaken | Exited | Failed | Lost | Stopping | Faulted
