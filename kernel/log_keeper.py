"""The hypervisor's side of the log keeper: starts it, hands it every pipe, and starts another where one died.

The hypervisor keeps a copy of the reading end of every pipe until the keeper is through with it, so nothing that a
domain has written is lost with a keeper.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import trio

from kernel.abi import packet
from kernel.abi.codec import Codec
from kernel.abi.ids import Name, Peer
from kernel.abi.keeping import KeepPipe, KeepRenamed, KeepTails, PipeEnded, PipeKind, TailMessage
from kernel.abi.log import Log
from kernel.abi.status import DomainFault
from kernel.core.restart import RestartAfter, RestartPolicy, decide
from kernel.link import Link

__all__ = ["LogKeeper"]

POLICY = RestartPolicy()
"""It is never given up: after the last back-off there is another."""

GRACE_S = 2.0
"""For the keeper to write what is still in its pipes."""

_codec = Codec(TailMessage)


class _Pipe(NamedTuple):
    name: Name
    reading: int


def _describe(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class LogKeeper:
    """The keeper of a run, over all its processes."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._pipes: dict[tuple[Peer, PipeKind], _Pipe] = {}
        self._tails: int | None = None
        self._process, self._link = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], Link]:
        """In a session of its own, so that a terminal's Ctrl-C does not reach it."""
        ours, theirs = packet.pair()
        with theirs:
            command = [sys.executable, "-m", "kernel.keeper", str(theirs.fileno()), str(self._run)]
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        return process, Link(ours)

    def keep(self, peer: Peer, name: Name, kind: PipeKind) -> int:
        """A pipe to the keeper: its writing end, which is the caller's."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._pipes[peer, kind] = _Pipe(name, reading)
        self._post(KeepPipe(peer, name, kind), reading)
        return writing

    def rename_console(self, before: Name, name: Name) -> None:
        """A guest has another name: so has its console's file, and what is still to come of it goes there."""
        for key, pipe in self._pipes.items():
            if key[1] is PipeKind.CONSOLE and pipe.name == before:
                self._pipes[key] = pipe._replace(name=name)
        self._post(KeepRenamed(before, name))

    def open_tails(self) -> int:
        """A channel on which the keeper answers `Tail`s, in the place of the one before: Dom0's end, the caller's."""
        keepers, dom0s = packet.pair()
        packet.close_all([] if self._tails is None else [self._tails])
        self._tails = keepers.detach()
        self._post(KeepTails(), self._tails)
        return dom0s.detach()

    def _post(self, message: KeepPipe | KeepTails | KeepRenamed, *descriptors: int) -> None:
        """Tell the keeper. One that takes nothing any more is ended, and its successor is told."""
        try:
            self._link.post([message], [os.dup(descriptor) for descriptor in descriptors])
        except DomainFault:
            self._process.kill()

    async def serve(self, log: Log) -> None:
        """Take its word for which pipes are at their end. When it dies, start another and hand it what is left."""
        deaths_s: list[float] = []
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._link.flush_forever)
                await self._take_words()
                nursery.cancel_scope.cancel()
            self._process.kill()
            log.critical("keeper.died", how=_describe(self._process.wait()))
            deaths_s = [*(t for t in deaths_s if t > trio.current_time() - POLICY.window_s), trio.current_time()]
            decision = decide(POLICY, deaths_s)
            await trio.sleep(decision.delay_s if isinstance(decision, RestartAfter) else POLICY.backoff_cap_s)
            self._start_anew()
            log.warning("keeper.started", pid=self._process.pid, pipes=len(self._pipes))

    def _start_anew(self) -> None:
        self._link.close()
        self._process, self._link = self._start()
        for (peer, kind), pipe in self._pipes.items():
            self._post(KeepPipe(peer, pipe.name, kind), pipe.reading)
        if self._tails is not None:
            self._post(KeepTails(), self._tails)

    async def _take_words(self) -> None:
        while True:
            data, descriptors = await self._link.receive()
            packet.close_all(descriptors)
            if not data:
                return
            for message in _codec.decode(data):
                if isinstance(message, PipeEnded):
                    pipe = self._pipes.pop((message.peer, message.kind), None)
                    packet.close_all([] if pipe is None else [pipe.reading])

    def stop(self) -> None:
        """Let it write what is in its pipes, whose other ends are closed by now, and wait for its end."""
        self._link.close()
        packet.close_all([pipe.reading for pipe in self._pipes.values()])
        packet.close_all([] if self._tails is None else [self._tails])
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
