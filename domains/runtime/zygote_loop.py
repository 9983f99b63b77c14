"""A zygote's loop: requests in, children out.

Single-threaded, because only a single-threaded process can be cloned with its Python in it. The hypervisor is the
children's parent (CLONE_PARENT), learns of their death from the kernel and reaps them; a zygote may die without harm.

A role's zygote works ahead: when nobody has asked for anything for a moment it clones a *spare*, a child in its
namespaces but without identity or descriptors, which the next request turns into its domain. Where the domain to come
is known, which is another incarnation of the last one, the spare is in its jail already. A spare that no request came
for ends with its zygote; it is then a zombie of the hypervisor's in the zygote's process group, so
whoever reaps a zygote also reaps that group (`waitid(P_PGID, zygote_pid, WEXITED)` until ECHILD).
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from domains.runtime import birth, jail
from domains.runtime.birth import Entry, Expected, Line
from domains.runtime.clone import Child, clone_sibling
from kernel.abi import packet
from kernel.abi.codec import Codec, encode
from kernel.abi.spawn import Spawned, SpawnFailed, SpawnRequest, ZygoteReply, ZygoteRequest, ZygoteRequests
from kernel.abi.status import KernelBug

__all__ = ["Zygote"]

READY_TIMEOUT_S = 10.0
"""For a jail or an import. They run only our own code, so this is for a host that has stalled."""

MAX_UNREADY = 64
"""Children on their way into the jail. More requests wait in the socket: a fork storm helps nobody."""

IDLE_MS = 15
"""Without a request for so long, a zygote works ahead. Sooner, it would take the CPU from the child just started."""

_codec = Codec(ZygoteRequests)


@dataclass(frozen=True, slots=True)
class _Born:
    """A child and the line to it. The zygote owns both, and the pidfd."""

    child: Child
    line: Line
    expected: Expected | None = None

    def close(self) -> None:
        self.line.close()
        os.close(self.child.pidfd)


@dataclass(frozen=True, slots=True)
class _Unready:
    """A child that has its order and has not said yet that it is done."""

    request: SpawnRequest | ZygoteRequest
    born: _Born
    deadline_s: float


@dataclass(slots=True)
class Zygote:
    """One zygote, base or role's, and its children that are not ready yet."""

    control: socket.socket
    host: jail.Host
    entry: Entry
    works_ahead: bool = False
    unready: list[_Unready] = field(default_factory=list)
    spare: _Born | None = None
    expected: Expected | None = None
    """Whose jail the next spare enters: that of the last order, since a driver's next incarnation has the same."""

    def serve(self) -> None:
        """Answer requests until the hypervisor's end of the control socket is closed."""
        while True:
            ready = self._wait()
            for unready in [each for each in self.unready if not ready.isdisjoint(each.born.line.descriptors())]:
                self.unready.remove(unready)
                self._finish(unready)
            self._end_late_ones(time.monotonic())
            if self.control.fileno() in ready:
                if not self._take_packet():
                    return
            elif not ready and self._may_work_ahead():
                self.spare = self._bear_child(ahead=True)

    def _wait(self) -> set[int]:
        """Descriptors that have something to say; none when there is nothing to do."""
        poll = select.poll()
        if len(self.unready) < MAX_UNREADY:
            poll.register(self.control, select.POLLIN)
        for unready in self.unready:
            for descriptor in unready.born.line.descriptors():
                poll.register(descriptor, select.POLLIN)
        patience_ms = 1000 if self.unready else IDLE_MS if self._may_work_ahead() else None
        return {descriptor for descriptor, _ in poll.poll(patience_ms)}

    def _may_work_ahead(self) -> bool:
        return self.works_ahead and self.spare is None and not self.unready

    def _take_packet(self) -> bool:
        """Do what one packet asks. False at the end of the stream."""
        data, descriptors = packet.receive(self.control)
        if not data:
            return False
        try:
            for message in _codec.decode(data):
                if not isinstance(message, ZygoteRequests):
                    raise KernelBug(f"the hypervisor sent {message}")
                count = len(message.fd_names) if isinstance(message, SpawnRequest) else 1
                self._answer(message, descriptors[:count], count)
                packet.close_all(descriptors[:count])
                del descriptors[:count]
        finally:
            packet.close_all(descriptors)
        return True

    def _answer(self, message: SpawnRequest | ZygoteRequest, descriptors: list[int], count: int) -> None:
        why = "" if len(descriptors) == count else f"{count} descriptors named, {len(descriptors)} came"
        if isinstance(message, SpawnRequest):
            why = why or jail.refusal(message.jail, message.fd_names)
        if why:
            self._reply(SpawnFailed(message.request, False, "request", why))
            return
        try:
            if isinstance(message, SpawnRequest):
                born = self._order(message, descriptors)
            else:
                born = self._fork(message, descriptors)
        except OSError as error:
            self._reply(SpawnFailed(message.request, False, "clone", str(error)))
            return
        self.unready.append(_Unready(message, born, time.monotonic() + READY_TIMEOUT_S))

    def _order(self, request: SpawnRequest, descriptors: list[int]) -> _Born:
        """Give the request to the spare, or to a child made for it. Raises OSError when there is none to be had."""
        wanted = Expected(request.identity.peer.domid, request.jail, request.role, request.config)
        self.expected = wanted if jail.can_be_entered_ahead(request.jail) else None
        if self.spare is not None and self.spare.expected in (None, wanted):
            spare, self.spare = self.spare, None
            with contextlib.suppress(OSError):  # somebody killed it
                return _hand_over(spare, request, descriptors)
        return _hand_over(self._bear_child(ahead=False), request, descriptors)

    def _bear_child(self, *, ahead: bool) -> _Born:
        """Clone a child that waits for its order."""
        ours, theirs = Line.pair()
        expected = self.expected if ahead else None
        child = clone_sibling(self.host.clone_flags)
        if child is None:
            birth.await_order(self.host, theirs, self.entry, ahead=ahead, expected=expected)
        theirs.orders.close()
        return _Born(child, ours, expected)

    def _fork(self, request: ZygoteRequest, descriptors: list[int]) -> _Born:
        """Fork the zygote of a role."""
        ours, theirs = Line.pair()
        child = clone_sibling()
        if child is None:
            self._become_role(request.role, descriptors[0], theirs)
        theirs.orders.close()
        return _Born(child, ours)

    def _become_role(self, role: str, control: int, line: Line) -> NoReturn:
        status = 1
        try:
            birth.import_role(role, (control, *self.host.descriptors()), self.host.proc, line)
            Zygote(socket.socket(fileno=control), self.host, self.entry, works_ahead=True).serve()
            status = 0
        finally:
            os._exit(status)

    def _finish(self, unready: _Unready) -> None:
        """A child has spoken, or died."""
        failed = unready.born.line.heard()
        if failed is not None:
            self._fail(unready, failed.step, failed.why)
            return
        child = unready.born.child
        jailed = isinstance(unready.request, SpawnRequest)
        level = birth.level_of(self.host) if jailed else "none"
        self._reply(Spawned(unready.request.request, child.pid, level, self.host.missing), (child.pidfd,))
        unready.born.close()

    def _end_late_ones(self, now_s: float) -> None:
        for unready in [each for each in self.unready if each.deadline_s < now_s]:
            self.unready.remove(unready)
            self._fail(unready, "timeout", f"not ready within {READY_TIMEOUT_S:g} s")

    def _fail(self, unready: _Unready, step: str, why: str) -> None:
        signal.pidfd_send_signal(unready.born.child.pidfd, signal.SIGKILL)
        self._reply(SpawnFailed(unready.request.request, True, step, why), (unready.born.child.pidfd,))
        unready.born.close()

    def _reply(self, reply: ZygoteReply, descriptors: Sequence[int] = ()) -> None:
        """Send one reply; a hypervisor that is gone will be noticed at the next read."""
        while True:
            try:
                packet.send(self.control, encode([reply]), descriptors)
            except BlockingIOError:
                _wait_writable(self.control)
            except (BrokenPipeError, ConnectionResetError):
                return
            else:
                return


def _hand_over(born: _Born, request: SpawnRequest, descriptors: list[int]) -> _Born:
    try:
        packet.send(born.line.orders, encode([request]), descriptors)
    except OSError:
        born.close()
        raise
    return born


def _wait_writable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll()
