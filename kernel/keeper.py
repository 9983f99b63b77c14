"""The log keeper: `python -m kernel.keeper CONTROL RUN`, one process, pipes of every domain in, stamped files out.

CONTROL is a channel to the hypervisor (`KeepPipe`, `KeepTails`, `PipeEnded`), RUN the run folder. A channel to Dom0
(`Tail`, `TailPart`, `TailEnd`) comes with each incarnation of Dom0.
"""

import os
import selectors
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.keeping import (
    KeepPipe,
    KeepRenamed,
    KeepRequest,
    KeepTails,
    PipeEnded,
    PipeKind,
    Tail,
    TailEnd,
    TailPart,
)
from kernel.abi.status import DomainFault
from kernel.keeping import Keeping, LogStamper, TailBuffer

__all__ = ["main"]

READ_BYTES = 65536
"""A pipe's whole capacity: one read empties it."""

PART_BYTES = 32768

_codec = Codec(KeepRequest)


class Keeper:
    """All pipes and their files."""

    def __init__(self, control: socket.socket, run: Path) -> None:
        self._control = control
        self._tails: Tails | None = None
        self._run = run
        self._selector = selectors.DefaultSelector()
        self._pipes: dict[int, tuple[KeepPipe, Keeping]] = {}
        self._tail_of: dict[str, TailBuffer] = {}
        self._watch(control.fileno(), self._take_request)

    def serve(self) -> None:
        """Until the hypervisor's end of the control channel closes and every pipe is at its end."""
        while self._pipes or self._control.fileno() in self._selector.get_map():
            for key, _ in self._selector.select():
                if self._selector.get_map().get(key.fd) is key:  # the one before may have closed it
                    key.data()

    def _watch(self, descriptor: int, act: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, act)

    def _take_request(self) -> None:
        data, descriptors = packet.receive(self._control)
        if not data:
            self._selector.unregister(self._control.fileno())
            return
        for message in _codec.decode(data):
            match message:
                case KeepPipe():
                    self._keep(message, descriptors.pop(0))
                case KeepRenamed(before=before, name=name):
                    self._rename(before, name)
                case KeepTails():
                    if self._tails:
                        self._tails.close()
                    self._tails = Tails(socket.socket(fileno=descriptors.pop(0)), self._selector, self._tail_of)

    def _rename(self, before: str, name: str) -> None:
        """Descriptors that are open stay with their file. A disk that refuses leaves the file where it is."""
        if tail := self._tail_of.pop(before, None):
            self._tail_of[name] = tail
        folder, number = self._run / "console", 1
        source, target = folder / f"{before}.log", folder / f"{name}.log"
        while (aside := folder / f"{name}.{number}.log").exists():
            number += 1
        try:
            if target.exists():
                target.rename(aside)
            source.rename(target)
        except OSError as error:
            print(f"keeper: {source}: {error.strerror}: it keeps its name", file=sys.stderr)

    def _keep(self, request: KeepPipe, pipe: int) -> None:
        os.set_blocking(pipe, False)
        keeping = self._open(request)
        self._pipes[pipe] = (request, keeping)
        self._watch(pipe, lambda: self._drain(pipe))

    def _open(self, request: KeepPipe) -> Keeping:
        """Files of a domain and its incarnation: one log for each incarnation, one console for all of them."""
        is_log = request.kind is PipeKind.LOG
        name = f"log/{request.name}.{request.peer.generation}.jsonl" if is_log else f"console/{request.name}.log"
        path = self._run / name
        descriptor = _open_file(path)
        if is_log and request.name != "hypervisor":
            return Keeping(descriptor, LogStamper(request.name, request.peer), None)
        of = "" if is_log else request.name
        tail = self._tail_of[of] = self._tail_of.get(of) or TailBuffer(path if path.exists() else None)
        return Keeping(descriptor, LogStamper(request.name, request.peer) if is_log else None, tail)

    def _drain(self, pipe: int) -> None:
        request, keeping = self._pipes[pipe]
        data = os.read(pipe, READ_BYTES)
        if data:
            keeping.take(data)
            return
        keeping.close()
        self._selector.unregister(pipe)
        del self._pipes[pipe]
        os.close(pipe)
        try:
            packet.send(self._control, encode([PipeEnded(request.peer, request.kind)]))
        except OSError:
            return


class Tails:
    """Dom0's channel. An answer waits until Dom0 takes it, and so does the next question; nothing else does."""

    def __init__(
        self, channel: socket.socket, selector: selectors.DefaultSelector, tail_of: dict[str, TailBuffer]
    ) -> None:
        self._channel = channel
        self._selector = selector
        self._tail_of = tail_of
        self._answer: deque[bytes] = deque()
        selector.register(channel.fileno(), selectors.EVENT_READ, self._take_question)

    def close(self) -> None:
        """Another incarnation of Dom0 has another."""
        if self._channel.fileno() in self._selector.get_map():
            self._selector.unregister(self._channel.fileno())
        self._channel.close()

    def _take_question(self) -> None:
        try:
            data, descriptors = packet.receive(self._channel)
            packet.close_all(descriptors)
            messages = _codec.decode(data) if data else []
        except (OSError, DomainFault, msgspec.DecodeError):
            data, messages = b"", []
        if not data:
            self._selector.unregister(self._channel.fileno())
            return
        for message in messages:
            if isinstance(message, Tail) and not self._answer:
                self._answer.extend(_parts(self._tail_of.get(message.name or "")))
        self._push_answer()

    def _push_answer(self) -> None:
        try:
            while self._answer:
                packet.send(self._channel, self._answer[0])
                self._answer.popleft()
        except BlockingIOError:
            self._selector.modify(self._channel.fileno(), selectors.EVENT_WRITE, self._push_answer)
            return
        except OSError:
            self._answer.clear()
        self._selector.modify(self._channel.fileno(), selectors.EVENT_READ, self._take_question)


def _parts(tail: TailBuffer | None) -> list[bytes]:
    data = tail.bytes() if tail else b""
    parts = [TailPart(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES)]
    return [encode([message]) for message in [*parts, TailEnd(tail is not None)]]


def _open_file(path: Path) -> int:
    """For appending. Where there cannot be one, as on a full disk, nothing is kept: the domain must not notice."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        path.parent.mkdir(exist_ok=True)
        return os.open(path, flags, 0o640)
    except OSError as error:
        print(f"keeper: {path}: {error.strerror}: its domain's events are lost", file=sys.stderr)
        return os.open(os.devnull, flags)


def main() -> None:
    """Keep logs until the hypervisor and all its domains are gone. Signals of a terminal are the hypervisor's
    affair."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Keeper(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
