"""The log keeper: `python -m kernel.keeper CONTROL TAILS RUN`, one process, pipes of every domain in, stamped files
out.

CONTROL is a channel to the hypervisor (`KeepPipe`, `PipeEnded`), TAILS one to Dom0 (`Tail`, `TailPart`, `TailEnd`),
RUN the run folder.
"""

import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.keeping import KeepPipe, KeepRequest, PipeEnded, PipeKind, Tail, TailEnd, TailPart
from kernel.abi.status import DomainFault
from kernel.keeping import Keeping, LogStamper, TailBuffer

__all__ = ["main"]

READ_BYTES = 65536
"""A pipe's whole capacity: one read empties it."""

PART_BYTES = 32768

_codec = Codec(KeepRequest)


class Keeper:
    """All pipes and their files."""

    def __init__(self, control: socket.socket, tails: socket.socket, run: Path) -> None:
        self._control = control
        self._tails = tails
        self._run = run
        self._selector = selectors.DefaultSelector()
        self._pipes: dict[int, tuple[KeepPipe, Keeping]] = {}
        self._tail_of: dict[str, TailBuffer] = {}
        self._watch(control.fileno(), self._take_request)
        self._watch(tails.fileno(), self._answer_tail)

    def serve(self) -> None:
        """Until the hypervisor's end of the control channel closes and every pipe is at its end."""
        while self._pipes or self._control.fileno() in self._selector.get_map():
            for key, _ in self._selector.select():
                key.data()

    def _watch(self, descriptor: int, act: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, act)

    def _take_request(self) -> None:
        data, descriptors = packet.receive(self._control)
        if not data:
            self._selector.unregister(self._control.fileno())
            return
        for message in _codec.decode(data):
            if isinstance(message, KeepPipe):
                self._keep(message, descriptors.pop(0))

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
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if is_log and request.name != "hypervisor":
            return Keeping(descriptor, LogStamper(request.name, request.peer), None)
        tail = self._tail_of.setdefault("" if is_log else request.name, TailBuffer())
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

    def _answer_tail(self) -> None:
        data, descriptors = self._receive_from_dom0()
        packet.close_all(descriptors)
        if not data:
            self._selector.unregister(self._tails.fileno())
            return
        for message in _codec.decode(data):
            if isinstance(message, Tail):
                self._send_tail(message.name)

    def _receive_from_dom0(self) -> packet.Packet:
        try:
            return packet.receive(self._tails)
        except (OSError, DomainFault, msgspec.DecodeError):
            return packet.Packet(b"", [])

    def _send_tail(self, name: str | None) -> None:
        tail = self._tail_of.get(name or "")
        data = tail.bytes() if tail else b""
        parts = [TailPart(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES)]
        self._tails.setblocking(True)
        for message in [*parts, TailEnd(tail is not None)]:
            self._tails.sendall(encode([message]))


def main() -> None:
    """Keep logs until the hypervisor and all its domains are gone. Signals of a terminal are the hypervisor's
    affair."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control, tails = (socket.socket(fileno=int(text)) for text in sys.argv[1:3])
    Keeper(control, tails, Path(sys.argv[3])).serve()


if __name__ == "__main__":
    main()
