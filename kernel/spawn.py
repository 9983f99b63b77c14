"""Zygotes: warm interpreters that clone jailed children for the hypervisor.

One base zygote is executed, and one for each role is forked from it. Any of them may die: the next order starts it
anew.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.ids import RequestId
from kernel.abi.log import Log
from kernel.abi.spawn import Identity, Jail, Spawned, SpawnFailed, SpawnRequest, ZygoteReply, ZygoteRequest

__all__ = ["Child", "Order", "SpawnError", "Zygotes"]

SPAWN_DEADLINE_S = 30.0
"""For a zygote to answer. A jailed child takes 5 ms, a role's import a second on a loaded host."""

ATTEMPTS = 3
"""To send a request. A zygote may have died since one last heard from it; then it is started anew."""

SPARE_LOOKS, SPARE_LOOK_S = 200, 0.01
"""For the child that a zygote had cloned ahead to follow it: looked for so often, so far apart."""

FORGOTTEN_LOOKS, FORGOTTEN_AFTER_LOOKS, FORGOTTEN_LOOK_S = 50, 20, 0.05
"""For zombies that nobody waits for, after a zygote died over an order. Whoever waits for one reaps it within a
millisecond."""

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


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Who waits for an answer, and the socket that the child was to have as its control channel, by its inode."""

    into: trio.MemorySendChannel[Child | SpawnFailed]
    control: int


@dataclass(eq=False, slots=True)
class _Zygote:
    """One zygote as the hypervisor sees it. `waiting` has who waits for which request.

    It is `dead` once it takes no more requests; its last answers may still come. `process` is the base's, which is held
    until it is reaped: `subprocess` reaps by itself what nobody holds.
    """

    socket: socket.socket
    pid: int
    process: subprocess.Popen[bytes] | None = None
    waiting: dict[RequestId, _Waiting] = field(default_factory=dict)
    dead: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that a zygote has."""

    zygote: _Zygote
    request: RequestId
    answer: trio.MemoryReceiveChannel[Child | SpawnFailed]


@dataclass(eq=False, slots=True)
class Order:
    """A child asked for by `Zygotes.order`."""

    zygotes: "Zygotes"
    role: str
    request: RequestId
    data: bytes
    descriptors: list[int]
    asked: _Asked | None = None

    async def child(self) -> Child:
        """The child, once it is in its jail. Call it once. Raises SpawnError."""
        if self.asked is None:
            self.asked = await self.zygotes.ask(self.role, self.request, self.data, self.descriptors)
        return await _answer(self.asked)


class Zygotes:
    """All zygotes of a run. `nursery` is where their answers are read."""

    def __init__(self, nursery: trio.Nursery, log: Log, trees: Sequence[str] = ()) -> None:
        """`trees`: paths that every domain may see, besides what an interpreter needs."""
        self._nursery = nursery
        self._log = log
        self._trees = trees
        self._base: _Zygote | None = None
        self._roles: dict[str, _Zygote] = {}
        self._starting: dict[str, trio.Lock] = {}
        self._last_request = 0
        self.missing: tuple[str, ...] = ()
        """Steps of the jail that this host cannot do: known with the first zygote of a role."""

    async def warm(self, role: str) -> None:
        """Have a zygote of this role ready. Raises SpawnError."""
        await self._role_zygote(role)

    def order(
        self, role: str, identity: Identity, jail: Jail, config: bytes, descriptors: dict[str, int]
    ) -> "Order":
        """Ask for a jailed child: at once where its zygote is warm, since guests may be waiting for it; else the first
        who awaits it starts the zygote. `descriptors` are the caller's, to be closed when it has come.
        """
        request = self._next_request()
        data = encode([SpawnRequest(request, role, identity, jail, config, tuple(descriptors))])
        order = Order(self, role, request, data, list(descriptors.values()))
        zygote = self._roles.get(role)
        if zygote is not None and not zygote.dead:
            with contextlib.suppress(OSError):  # it may just have died, or be asked for too much at once
                order.asked = _ask(zygote, request, data, order.descriptors)
        return order

    async def ask(self, role: str, request: RequestId, data: bytes, descriptors: Sequence[int]) -> _Asked:
        """Send a request to the role's zygote, or to the base where there is no role. Raises SpawnError."""
        for _ in range(ATTEMPTS):
            zygote = await self._role_zygote(role) if role else self._living_base()
            try:
                return _ask(zygote, request, data, descriptors)
            except ConnectionError:  # its end is not heard of yet
                zygote.dead = True
            except OSError as error:
                raise SpawnError(f"the zygote takes no order: {error!r}") from error
        raise SpawnError(f"{ATTEMPTS} zygotes died before they took an order")

    async def _role_zygote(self, role: str) -> _Zygote:
        zygote = self._roles.get(role)
        if zygote is not None and not zygote.dead:
            return zygote
        async with self._starting.setdefault(role, trio.Lock()):
            zygote = self._roles.get(role)
            if zygote is None or zygote.dead:
                zygote = self._roles[role] = await self._fork_role(role)
            return zygote

    async def _fork_role(self, role: str) -> _Zygote:
        ours, theirs = packet.pair()
        with theirs:
            request = self._next_request()
            data = encode([ZygoteRequest(request, role)])
            child = await _answer(await self.ask("", request, data, [theirs.fileno()]))
        zygote = _Zygote(ours, child.pid)
        self.missing = child.missing
        self._nursery.start_soon(self._read_answers, zygote, role, child.pidfd)
        self._log.info("zygote.started", role=role, pid=child.pid)
        return zygote

    def _living_base(self) -> _Zygote:
        """Execute a base zygote from this, the main thread: it dies with the thread that made it (PR_SET_PDEATHSIG)."""
        if self._base is None or self._base.dead:
            ours, theirs = packet.pair()
            with theirs:
                command = [sys.executable, "-m", "domains.runtime.zygote", "--control", str(theirs.fileno())]
                command += [word for tree in self._trees for word in ("--tree", tree)]
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

    async def _read_answers(self, zygote: _Zygote, role: str, pidfd: int) -> None:
        """Until the zygote is gone. Whoever waits for it then is told."""
        data = b"something"
        while data:
            await trio.lowlevel.wait_readable(zygote.socket)
            try:
                data, descriptors = packet.receive(zygote.socket)
            except OSError:
                data, descriptors = b"", []
            for message in _codec.decode(data) if data else ():
                _hand_over(zygote, message, descriptors)
            packet.close_all(descriptors)
        zygote.dead = True
        self._log.warning("zygote.died", role=role)
        left_orders = bool(zygote.waiting)
        orphans = _end_unconfirmed(zygote)
        for waiting in zygote.waiting.values():
            waiting.into.close()
        zygote.socket.close()
        await trio.lowlevel.wait_readable(pidfd)
        if zygote.process is None:
            _reap_dead(pidfd)
        else:
            zygote.process.wait()
            os.close(pidfd)
        for orphan in orphans:
            await trio.lowlevel.wait_readable(orphan)
            _reap_dead(orphan)
        await self._reap_spare(zygote.pid)
        if left_orders:
            await _reap_forgotten()

    async def _reap_spare(self, pid: int) -> None:
        """A role's zygote clones a child ahead. That one dies with it, in its process group, and is ours to reap."""
        for _ in range(SPARE_LOOKS):
            if not _reap_group(pid):
                return
            await trio.sleep(SPARE_LOOK_S)

    def _next_request(self) -> RequestId:
        self._last_request += 1
        return RequestId(self._last_request)


def _ask(zygote: _Zygote, request: RequestId, data: bytes, descriptors: Sequence[int]) -> _Asked:
    """Send a request. The first descriptor is the child's control channel."""
    into, out_of = trio.open_memory_channel[Child | SpawnFailed](1)
    packet.send(zygote.socket, data, descriptors)
    zygote.waiting[request] = _Waiting(into, os.fstat(descriptors[0]).st_ino)
    return _Asked(zygote, request, out_of)


async def _answer(asked: _Asked) -> Child:
    """Wait for a zygote's answer. One that does not give any is ended. Raises SpawnError."""
    try:
        with trio.move_on_after(SPAWN_DEADLINE_S) as patience:
            answer = await asked.answer.receive()
        if patience.cancelled_caught:
            os.kill(asked.zygote.pid, signal.SIGKILL)
            answer = await asked.answer.receive()
    except (OSError, trio.EndOfChannel) as error:
        raise SpawnError(f"the zygote did not answer: {error!r}") from error
    finally:
        asked.zygote.waiting.pop(asked.request, None)
    if isinstance(answer, SpawnFailed):
        raise SpawnError(f"could not be started: {answer.step}: {answer.why}")
    return answer


def _hand_over(zygote: _Zygote, message: Spawned | SpawnFailed, descriptors: list[int]) -> None:
    """Give an answer to who waits for it. A child that nobody waits for any more is left to its control
    channel, which is closed."""
    waiting = zygote.waiting.pop(message.request, None)
    if isinstance(message, SpawnFailed):
        if message.born:
            _reap_dead(descriptors.pop(0))
        if waiting:
            waiting.into.send_nowait(message)
        return
    pidfd = descriptors.pop(0)
    if waiting is None:
        os.close(pidfd)
        return
    waiting.into.send_nowait(Child(message.pid, pidfd, message.jail, message.missing))


def _end_unconfirmed(zygote: _Zygote) -> list[int]:
    """End the children of a dead zygote whose birth nobody heard of; pidfds of those that are to be reaped one by one.

    A child is in the zygote's process group until it has its control channel, and known by that from then on.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(zygote.pid, signal.SIGKILL)
    sockets = {f"socket:[{waiting.control}]" for waiting in zygote.waiting.values()}
    return [orphan for pid in (_children() if sockets else ()) for orphan in _end_if_it_holds(pid, sockets)]


async def _reap_forgotten() -> None:
    """A child that ended by itself as its zygote died is a zombie that no task waits for, and so is still there when
    every task has had its turn again and again."""
    looks: dict[int, int] = {}
    for _ in range(FORGOTTEN_LOOKS):
        looks = {pid: looks.get(pid, 0) + 1 for pid in _zombies()}
        for pid in (pid for pid, count in looks.items() if count == FORGOTTEN_AFTER_LOOKS):
            _reap_pid(pid)
        await trio.sleep(FORGOTTEN_LOOK_S)


def _reap_pid(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # after the death of another zygote as well
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _zombies() -> set[int]:
    return {pid for pid in _children() if _is_zombie(pid)}


def _is_zombie(pid: int) -> bool:
    """proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _children() -> list[int]:
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def _end_if_it_holds(pid: int, sockets: set[str]) -> list[int]:
    try:
        if not any(os.readlink(link) in sockets for link in Path(f"/proc/{pid}/fd").iterdir()):
            return []
        pidfd = os.pidfd_open(pid)
    except OSError:
        return []
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return [pidfd]


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
