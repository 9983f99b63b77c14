"""A zygote's loop: requests in, children out.

Single-threaded, because only a single-threaded process can be cloned with its Python in it. The hypervisor is the
children's parent (CLONE_PARENT), learns of their death from the kernel and reaps them; a zygote may die without harm.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from domains.runtime import birth, jail
from domains.runtime.birth import Entry
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

_codec = Codec(ZygoteRequests)


@dataclass(frozen=True, slots=True)
class _Unready:
    """A child that has not said yet that it is in its jail. The zygote owns both descriptors."""

    request: SpawnRequest | ZygoteRequest
    child: Child
    pipe: int
    deadline_s: float


@dataclass(slots=True)
class Zygote:
    """One zygote, base or role's, and its children that are not ready yet."""

    control: socket.socket
    host: jail.Host
    entry: Entry
    unready: dict[int, _Unready] = field(default_factory=dict)

    def serve(self) -> None:
        """Answer requests until the hypervisor's end of the control socket is closed."""
        control = self.control.fileno()
        while True:
            poll = select.poll()
            if len(self.unready) < MAX_UNREADY:
                poll.register(control, select.POLLIN)
            for pipe in self.unready:
                poll.register(pipe, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(1000 if self.unready else None)}
            for pipe in ready & self.unready.keys():
                self._finish(self.unready.pop(pipe))
            self._end_late_ones(time.monotonic())
            if control in ready and not self._take_packet():
                return

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
        pipe, tell = os.pipe2(os.O_CLOEXEC)
        try:
            child = clone_sibling(self.host.clone_flags if isinstance(message, SpawnRequest) else 0)
        except OSError as error:
            self._reply(SpawnFailed(message.request, False, "clone", str(error)))
            packet.close_all((pipe, tell))
            return
        if child is None:
            self._be_child(message, descriptors, tell)
        os.close(tell)
        self.unready[pipe] = _Unready(message, child, pipe, time.monotonic() + READY_TIMEOUT_S)

    def _be_child(self, message: SpawnRequest | ZygoteRequest, descriptors: list[int], tell: int) -> NoReturn:
        if isinstance(message, SpawnRequest):
            birth.become_domain(self.host, message, descriptors, tell, self.entry)
        birth.import_role(message.role, (*descriptors, *self.host.descriptors()), self.host.proc, tell)
        Zygote(socket.socket(fileno=descriptors[0]), self.host, self.entry).serve()
        os._exit(0)

    def _finish(self, unready: _Unready) -> None:
        """A child has spoken, or died."""
        ready = birth.read_ready(unready.pipe)
        if ready.step:
            self._fail(unready, ready.step, ready.why)
            return
        jailed = isinstance(unready.request, SpawnRequest)
        level, missing = (birth.level_of(self.host), self.host.missing) if jailed else ("none", ())
        self._reply(Spawned(unready.request.request, unready.child.pid, level, missing), (unready.child.pidfd,))
        packet.close_all((unready.pipe, unready.child.pidfd))

    def _end_late_ones(self, now_s: float) -> None:
        for unready in [each for each in self.unready.values() if each.deadline_s < now_s]:
            del self.unready[unready.pipe]
            self._fail(unready, "timeout", f"not ready within {READY_TIMEOUT_S:g} s")

    def _fail(self, unready: _Unready, step: str, why: str) -> None:
        signal.pidfd_send_signal(unready.child.pidfd, signal.SIGKILL)
        self._reply(SpawnFailed(unready.request.request, True, step, why), (unready.child.pidfd,))
        packet.close_all((unready.pipe, unready.child.pidfd))

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


def _wait_writable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll()
