"""Zygotes: warm interpreters that clone jailed children for the hypervisor.

One base zygote is executed, and one for each role is forked from it. Any of them may die: the next order starts it
anew.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.ids import RequestId
from kernel.abi.log import Log
from kernel.abi.spawn import Identity, Jail, Spawned, SpawnFailed, SpawnRequest, ZygoteReply, ZygoteRequest

__all__ = ["Child", "SpawnError", "Zygotes"]

SPAWN_DEADLINE_S = 30.0
"""For a zygote to answer. A jailed child takes 5 ms, a role's import a second on a loaded host."""

SPARE_LOOKS, SPARE_LOOK_S = 200, 0.01
"""For the child that a zygote had cloned ahead to follow it: looked for so often, so far apart."""

_codec = Codec(ZygoteReply)


class SpawnError(Exception):
    """There is no child: one line with the step that failed."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that a zygote cloned, child of the hypervisor. `missing`: jail steps that this host cannot do."""

    pid: int
    pidfd: int
    jail: str
    missing: tuple[str, ...]


@dataclass(eq=False, slots=True)
class _Zygote:
    """One zygote as the hypervisor sees it. `waiting` has who waits for which request.

    `process` is the base's, which is held until it is reaped: `subprocess` reaps by itself what nobody holds.
    """

    socket: socket.socket
    pid: int
    process: subprocess.Popen[bytes] | None = None
    waiting: dict[RequestId, trio.MemorySendChannel[Child | SpawnFailed]] = field(default_factory=dict)
    dead: bool = False


class Zygotes:
    """All zygotes of a run. `nursery` is where their answers are read."""

    def __init__(self, nursery: trio.Nursery, log: Log) -> None:
        self._nursery = nursery
        self._log = log
        self._base: _Zygote | None = None
        self._roles: dict[str, _Zygote] = {}
        self._starting: dict[str, trio.Lock] = {}
        self._last_request = 0

    async def warm(self, role: str) -> None:
        """Have a zygote of this role ready. Raises SpawnError."""
        await self._role_zygote(role)

    async def spawn(
        self, role: str, identity: Identity, jail: Jail, config: bytes, descriptors: dict[str, int]
    ) -> Child:
        """Clone a jailed child. `descriptors` stay the caller's. Raises SpawnError."""
        zygote = await self._role_zygote(role)
        request = self._next_request()
        message = SpawnRequest(request, role, identity, jail, config, tuple(descriptors))
        return await self._ask(zygote, request, encode([message]), list(descriptors.values()))

    async def _role_zygote(self, role: str) -> _Zygote:
        async with self._starting.setdefault(role, trio.Lock()):
            zygote = self._roles.get(role)
            if zygote is None or zygote.dead:
                zygote = self._roles[role] = await self._fork_role(role)
            return zygote

    async def _fork_role(self, role: str) -> _Zygote:
        ours, theirs = packet.pair()
        with theirs:
            request = self._next_request()
            base = self._living_base()
            child = await self._ask(base, request, encode([ZygoteRequest(request, role)]), [theirs.fileno()])
        zygote = _Zygote(ours, child.pid)
        self._nursery.start_soon(self._read_answers, zygote, role, child.pidfd)
        self._log.info("zygote.started", role=role, pid=child.pid)
        return zygote

    def _living_base(self) -> _Zygote:
        """Execute a base zygote from this, the main thread: it dies with the thread that made it (PR_SET_PDEATHSIG)."""
        if self._base is None or self._base.dead:
            ours, theirs = packet.pair()
            with theirs:
                command = [sys.executable, "-m", "domains.runtime.zygote", "--control", str(theirs.fileno())]
                process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._base = _Zygote(ours, process.pid, process)
            self._nursery.start_soon(self._read_answers, self._base, "", os.pidfd_open(process.pid))
            self._log.info("zygote.started", role="", pid=process.pid)
        return self._base

    async def _ask(self, zygote: _Zygote, request: RequestId, data: bytes, descriptors: Sequence[int]) -> Child:
        into, out_of = trio.open_memory_channel[Child | SpawnFailed](1)
        zygote.waiting[request] = into
        try:
            packet.send(zygote.socket, data, descriptors)
            with trio.fail_after(SPAWN_DEADLINE_S):
                answer = await out_of.receive()
        except (OSError, trio.TooSlowError, trio.EndOfChannel) as error:
            raise SpawnError(f"the zygote did not answer: {error!r}") from error
        finally:
            zygote.waiting.pop(request, None)
        if isinstance(answer, SpawnFailed):
            raise SpawnError(f"could not be started: {answer.step}: {answer.why}")
        return answer

    async def _read_answers(self, zygote: _Zygote, role: str, pidfd: int) -> None:
        """Until the zygote is gone. Whoever waits for it then is told."""
        while not zygote.dead:
            await trio.lowlevel.wait_readable(zygote.socket)
            try:
                data, descriptors = packet.receive(zygote.socket)
            except OSError:
                data, descriptors = b"", []
            zygote.dead = not data
            for message in _codec.decode(data) if data else ():
                _hand_over(zygote, message, descriptors)
            packet.close_all(descriptors)
        self._log.warning("zygote.died", role=role)
        for waiting in zygote.waiting.values():
            waiting.close()
        zygote.socket.close()
        await trio.lowlevel.wait_readable(pidfd)
        if zygote.process is None:
            _reap_dead(pidfd)
        else:
            zygote.process.wait()
            os.close(pidfd)
        await self._reap_spare(zygote.pid)

    async def _reap_spare(self, pid: int) -> None:
        """A role's zygote clones a child ahead. That one dies with it, in its process group, and is ours to reap."""
        for _ in range(SPARE_LOOKS):
            if not _reap_group(pid):
                return
            await trio.sleep(SPARE_LOOK_S)

    def _next_request(self) -> RequestId:
        self._last_request += 1
        return RequestId(self._last_request)


def _hand_over(zygote: _Zygote, message: Spawned | SpawnFailed, descriptors: list[int]) -> None:
    """Give an answer to who waits for it. A child that nobody waits for any more is left to its control
    channel, which is closed."""
    waiting = zygote.waiting.pop(message.request, None)
    if isinstance(message, SpawnFailed):
        if message.born:
            _reap_dead(descriptors.pop(0))
        if waiting:
            waiting.send_nowait(message)
        return
    pidfd = descriptors.pop(0)
    if waiting is None:
        os.close(pidfd)
        return
    waiting.send_nowait(Child(message.pid, pidfd, message.jail, message.missing))


def _reap_group(pid: int) -> bool:
    """Reap what has died of a process group. False when there is none left of it."""
    try:
        os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _reap_dead(pidfd: int) -> None:
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
