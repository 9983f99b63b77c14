"""The end of a guest's vhost-user connection: what the guest's device driver sets up becomes the vbd's queue."""

import contextlib
import os
import socket
from collections.abc import Callable

from domains.frontends.vbd import Vbd
from domains.runtime.data_loop import DataLoop
from domains.virtio import blk
from domains.virtio.memory import GuestMemory, Unmappable
from domains.virtio.queue import QueueFault, SplitQueue
from domains.virtio.vhost_user import (
    BaseAsked,
    CallChanged,
    Connection,
    Event,
    MemoryMapped,
    ProtocolError,
    QueueStarted,
    QueueStopped,
    Reply,
    Session,
)

__all__ = ["Terminator"]

TURN_MESSAGES = 16
"""Messages taken before others have their turn. Setting up a disk takes about twenty."""


class Terminator:
    """Listens for one vbd's guest; one connection at a time, any number in succession."""

    def __init__(
        self,
        loop: DataLoop,
        vbd: Vbd,
        listener: socket.socket,
        session: Callable[[], Session],
        *,
        on_guest_fault: Callable[[str, str], None],
    ) -> None:
        """`on_guest_fault(what, evidence)` is called when the guest broke a rule."""
        self._loop = loop
        self._vbd = vbd
        self._listener = listener
        self._new_session = session
        self._on_guest_fault = on_guest_fault
        self._connection: Connection | None = None
        self._memory: GuestMemory | None = None
        self._kick = self._call = -1
        self._queue: SplitQueue | None = None
        self._next_available = 0
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if self._connection is not None:
            sock.close()
            return
        self._connection = Connection(sock, self._new_session())
        self._loop.watch(sock.fileno(), self._receive)

    def _receive(self) -> None:
        try:
            for _ in range(TURN_MESSAGES):
                events = self._connection.receive() if self._connection is not None else None
                if events is None:
                    return
                for event in events:
                    self._act(event)
        except EOFError:
            self.disconnect()
        except (ProtocolError, QueueFault) as error:
            self.fail(error.what, error.evidence)
        except (Unmappable, OSError) as error:
            self.fail("unusable descriptor", str(error))

    def _act(self, event: Event) -> None:
        connection = self._connection
        if connection is None:
            return
        match event:
            case Reply():
                connection.send(event)
            case MemoryMapped():
                try:
                    self._memory = GuestMemory(event.descriptor, event.base, event.size, event.offset)
                finally:
                    os.close(event.descriptor)
            case CallChanged(call=call):
                self._set_call(call)
            case QueueStarted():
                self._start(event)
            case QueueStopped():
                self._stop()
            case BaseAsked():
                connection.send(connection.session.base_reply(self._next_available))

    def _set_call(self, descriptor: int) -> None:
        if self._call >= 0:
            os.close(self._call)
        self._call = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
        self._vbd.guest.set_call(descriptor)

    def _start(self, started: QueueStarted) -> None:
        self._kick = started.kick
        if self._memory is None:
            raise ProtocolError("a queue starts without memory")
        queue = SplitQueue(
            self._memory, started.layout, event_index=started.event_index, next_available=started.next_available
        )
        self._queue = queue
        self._loop.watch(self._kick, _kicked, edge=True)
        self._vbd.guest.start(queue, self._memory.view)

    def _stop(self) -> None:
        if self._kick >= 0:
            self._loop.unwatch(self._kick)
            os.close(self._kick)
            self._kick = -1
        queue, self._queue = self._queue, None
        if queue is not None:
            self._next_available = queue.next_available
            self._vbd.stop_queue()

    def fail(self, what: str, evidence: str) -> None:
        """The guest broke a rule: its device is gone for good, as for a real one that wants a reset it never gets."""
        self.disconnect()
        self._on_guest_fault(what, evidence)

    def disconnect(self) -> None:
        """End the connection and whatever came over it."""
        self._stop()
        self._set_call(-1)
        self._memory = None
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.unwatch(connection.socket.fileno())
            connection.close()

    def close(self) -> None:
        """Listen no more."""
        self.disconnect()
        with contextlib.suppress(OSError):
            self._loop.unwatch(self._listener.fileno())
        self._listener.close()


def session_for(sectors: int, *, read_only: bool) -> Session:
    """The device that a vbd of so many sectors is to its guest."""
    return Session(blk.features(read_only=read_only), blk.config_space(sectors))


def _kicked() -> None:
    """The loop is awake, and will look at its rings: that is all that a kick is for."""
