"""The end of a guest's vhost-user connection: what the guest's device driver sets up becomes the vbd's queue.

The connection itself is with a keeper that outlives this process (`domains.virtio.custody`); here is what its messages
mean. Whatever the guest can see of a message happens after the keeper was told that it is handled.
"""

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Iterable

from domains.frontends.vbd import Vbd
from domains.runtime.data_loop import DataLoop
from domains.virtio import blk
from domains.virtio.custody import FrontGone, FrontMessage, Resumed, encode_handled, receive
from domains.virtio.in_flight import IN_FLIGHT_BYTES, InFlight
from domains.virtio.memory import GuestMemory, Unmappable
from domains.virtio.queue import QueueFault, QueueLayout, SplitQueue
from domains.virtio.vhost_user import (
    BaseAsked,
    CallChanged,
    Event,
    MemoryMapped,
    Message,
    ProtocolError,
    QueueResumed,
    QueueStarted,
    QueueStopped,
    Reply,
    Session,
    handed_on,
)
from kernel.abi import packet

__all__ = ["Terminator"]


class Terminator:
    """Serves one vbd's guest, as the keeper's line tells of it."""

    def __init__(
        self,
        loop: DataLoop,
        vbd: Vbd,
        line: socket.socket,
        in_flight: int,
        session: Callable[[], Session],
        *,
        on_guest_fault: Callable[[str, str], None],
    ) -> None:
        """`in_flight`: a descriptor of the queue's table of that name; it stays the caller's. `on_guest_fault(what,
        evidence)` is called when the guest broke a rule."""
        self._loop = loop
        self._vbd = vbd
        self._line = line
        self._in_flight = InFlight(memoryview(mmap.mmap(in_flight, IN_FLIGHT_BYTES)))
        self._new_session = session
        self._session = session()
        self._on_guest_fault = on_guest_fault
        self._memory: GuestMemory | None = None
        self._kick = self._call = -1
        line.setblocking(False)
        loop.watch(line.fileno(), self._receive)

    def _receive(self) -> None:
        try:
            told, descriptors = receive(self._line)
        except BlockingIOError:
            return
        except EOFError:
            self._loop.unwatch(self._line.fileno())
            return
        try:
            self._obey(told, descriptors)
        except (ProtocolError, QueueFault) as error:
            self.fail(error.what, error.evidence)
        except (Unmappable, OSError) as error:
            self.fail("unusable descriptor", str(error))

    def _obey(self, told: FrontMessage | FrontGone | Resumed, descriptors: list[int]) -> None:
        match told:
            case FrontMessage():
                self._take(Message(told.code, told.flags, told.payload, tuple(descriptors)))
            case Resumed():
                held = dict(zip(told.codes, descriptors, strict=True))
                events = self._session.resume(told.state, held)
                self._settle(descriptors, events)
                self._act(events)
            case FrontGone():
                self.disconnect()
                if told.broke:
                    self._on_guest_fault(told.broke, told.evidence)

    def _take(self, message: Message) -> None:
        events: list[Event] = []
        waiting_kick = self._session.waiting_kick
        try:
            events = self._session.take(message)
        finally:
            self._settle([*message.descriptors, *([waiting_kick] if waiting_kick >= 0 else [])], events)
        reply, started = self._act(events)
        self._line.send(encode_handled(self._session.state(), reply))
        if started is not None:
            self._vbd.guest.start(*started)

    def _settle(self, descriptors: Iterable[int], events: list[Event]) -> None:
        """Close every descriptor that is neither handed on nor still needed."""
        needed = {*map(handed_on, events), self._session.waiting_kick}
        packet.close_all([descriptor for descriptor in descriptors if descriptor not in needed])

    def _act(self, events: list[Event]) -> tuple[bytes, tuple[SplitQueue, memoryview] | None]:
        """Do what the guest cannot see. The reply that it is to get, and the queue that is to be served then."""
        reply, started = b"", None
        for event in events:
            match event:
                case Reply():
                    reply = event.data
                case MemoryMapped():
                    try:
                        self._memory = GuestMemory(event.descriptor, event.base, event.size, event.offset)
                    finally:
                        os.close(event.descriptor)
                case CallChanged(call=call):
                    self._set_call(call)
                case QueueStarted():
                    queue, view = self._queue(event.kick, event.layout, event.event_index, event.next_available)
                    queue.begin()
                    started = queue, view
                case QueueResumed():
                    queue, view = self._queue(event.kick, event.layout, event.event_index)
                    queue.resume()
                    self._vbd.guest.start(queue, view)
                    self._vbd.guest.signal()
                case QueueStopped():
                    self._stop()
                case BaseAsked():
                    reply = self._session.base_reply().data
        return reply, started

    def _set_call(self, descriptor: int) -> None:
        if self._call >= 0:
            os.close(self._call)
        self._call = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
        self._vbd.guest.set_call(descriptor)

    def _queue(
        self, kick: int, layout: QueueLayout, event_index: bool, next_available: int = 0
    ) -> tuple[SplitQueue, memoryview]:
        """A queue in the guest's memory, kicked from now on."""
        self._kick = kick
        if self._memory is None:
            raise ProtocolError("a queue starts without memory")
        queue = SplitQueue(
            self._memory, layout, event_index=event_index, next_available=next_available, in_flight=self._in_flight
        )
        self._loop.watch(self._kick, _kicked, edge=True)
        return queue, self._memory.view

    def _stop(self) -> None:
        if self._kick >= 0:
            self._loop.unwatch(self._kick)
            os.close(self._kick)
            self._kick = -1
        queue = self._vbd.guest.queue
        if queue is not None:
            self._session.stopped_at = queue.next_available
            self._vbd.stop_queue()

    def fail(self, what: str, evidence: str) -> None:
        """The guest broke a rule: its device is gone for good, as for a real one that wants a reset it never gets."""
        self.disconnect()
        self._on_guest_fault(what, evidence)

    def disconnect(self) -> None:
        """End the session and whatever came over it."""
        self._stop()
        self._set_call(-1)
        self._memory = None
        packet.close_all([self._session.waiting_kick] if self._session.waiting_kick >= 0 else [])
        self._session = self._new_session()

    def close(self) -> None:
        """Listen no more."""
        self.disconnect()
        with contextlib.suppress(OSError):
            self._loop.unwatch(self._line.fileno())
        self._line.close()


def session_for(sectors: int, *, read_only: bool) -> Session:
    """The device that a vbd of so many sectors is to its guest."""
    return Session(blk.features(read_only=read_only), blk.config_space(sectors))


def _kicked() -> None:
    """The loop is awake, and will look at its rings: that is all that a kick is for."""
