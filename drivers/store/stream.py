"""One administrator's connection: xenstore's wire on a Unix stream, gone on with by whichever incarnation serves.

Each request is taken out of the stream once, and each answer and event goes into it once, whenever this process dies:
input is looked at before it is taken, output goes through a pipe that outlives us (`slot`).
"""

import array
import fcntl
import os
import socket
import termios

from domains.runtime.faults import FaultPoints
from drivers.store.slot import Phase, Slot
from drivers.store.store import Store
from kernel.abi.io.xs_wire import HEADER, PAYLOAD_MAX, Op, pack_message

__all__ = ["Stream", "StreamBroken"]

SO_PEEK_OFF = 42
"""`asm-generic/socket.h`: where the next look begins. The kernel moves it on with each look, and back with each take.
"""

LOOK_BYTES = 65536
"""At once: at least fifteen requests."""

_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_SPLICE_FLAGS = os.SPLICE_F_NONBLOCK
_HEADER_BYTES = HEADER.size
_EVENT_OP = int(Op.WATCH_EVENT)


class StreamBroken(Exception):
    """The client broke the wire's rules, and what it sends after that has no meaning."""


class Stream:
    """A session (`sessions.Session`) with a client on a stream."""

    def __init__(self, store: Store, connection: int, descriptors: list[int], faults: FaultPoints) -> None:
        """`descriptors`: those of `XenstoreStream`, taken out of the list. What a predecessor left half-done is
        finished as soon as the client takes it."""
        self._store = store
        self._faults = faults
        self._connection = connection
        stream, self._pipe_out, self._pipe_in, slot = descriptors
        descriptors.clear()
        self._socket = socket.socket(fileno=stream)
        self.descriptor = stream
        self._slot = Slot(slot)
        os.close(slot)
        self._take_over()
        self._answered = self._slot.answered
        last = store.last(connection)
        self._done = last if last is not None and last[0] > self._answered else None
        self._input = b""
        self._socket.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        self.blocked = self._slot.phase is not Phase.IDLE
        """Output waits for room in the stream."""

    def _take_over(self) -> None:
        """Bring the message of a predecessor as far as the stream, from wherever it was."""
        slot = self._slot
        if slot.phase is Phase.WRITING:
            message = slot.message
            with message:
                os.write(self._pipe_in, message[_bytes_in(self._pipe_out) :])
            looked_at = self._socket.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
            self._take(slot.length - (slot.looked_at - looked_at) if slot.length else 0)
            slot.written()
        if slot.phase is Phase.SENDING and not _bytes_in(self._pipe_out):
            slot.sent()
        self._store.event_sent(self._connection, slot.events)

    def turn(self) -> bool:
        """Answer one request and send one event, if there are any. False when there was nothing to do.

        Raises EOFError when the client has gone, StreamBroken when it should.
        """
        if self._slot.phase is not Phase.IDLE and not self._push():
            return False
        answered = self._answer_one()
        return self._send_event() or answered

    def _answer_one(self) -> bool:
        request = self._next_request()
        if request is None:
            return False
        op, request_id, tx_id, body = request
        number = self._answered + 1
        if self._done is not None:
            (_, op, answer), self._done = self._done, None
        else:
            op, answer = self._store.request(self._connection, number, op, tx_id, body)
        message = pack_message(op, request_id, tx_id, answer)
        length = _HEADER_BYTES + len(body)
        self._reached("done")
        self._slot.begin(message, number=number, looked_at=len(self._input), length=length)
        self._reached("begun")
        os.write(self._pipe_in, message)
        self._reached("written")
        self._take(length)
        self._reached("taken")
        self._input = self._input[length:]
        self._slot.written()
        self._answered = number
        self._push()
        return True

    def _send_event(self) -> bool:
        """After an answer, so that neither waits for the other for ever."""
        if self._slot.phase is not Phase.IDLE:
            return False
        event = self._store.next_event(self._connection)
        if event is None:
            return False
        number, body = event
        message = pack_message(_EVENT_OP, 0, 0, body)
        self._slot.begin(message, event=number)
        self._reached("event-begun")
        os.write(self._pipe_in, message)
        self._reached("event-written")
        self._slot.written()
        self._push()
        return True

    def _push(self) -> bool:
        """From the pipe into the stream. False while there is no room for all of it."""
        left = _bytes_in(self._pipe_out) if self.blocked else len(self._slot.message)
        try:
            while left:
                left -= os.splice(self._pipe_out, self.descriptor, left, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            self.blocked = True
            return False
        except OSError:
            raise EOFError from None
        self.blocked = False
        slot = self._slot
        self._reached("sent")
        slot.sent()
        if slot.events:
            self._store.event_sent(self._connection, slot.events)
        return True

    def _next_request(self) -> tuple[int, int, int, bytes] | None:
        """The oldest one that is whole."""
        while True:
            data = self._input
            if len(data) >= _HEADER_BYTES:
                op, request_id, tx_id, length = HEADER.unpack_from(data)
                if length > PAYLOAD_MAX:
                    raise StreamBroken(f"a message of {length} bytes: at most {PAYLOAD_MAX} are taken")
                end = _HEADER_BYTES + length
                if len(data) >= end:
                    return op, request_id, tx_id, data[_HEADER_BYTES:end]
            if not self._look():
                return None

    def _look(self) -> bool:
        """At input that was not looked at yet. False where there is none now."""
        try:
            more = self._socket.recv(LOOK_BYTES, _LOOK)
        except BlockingIOError:
            return False
        except OSError:
            raise EOFError from None
        if not more:
            raise EOFError
        self._input += more
        return True

    def _take(self, length: int) -> None:
        """That many bytes of input out of the stream."""
        while length:
            length -= len(self._socket.recv(length))

    def _reached(self, point: str) -> None:
        if self._faults:
            self._faults.hit(point)

    def close(self) -> None:
        """Give everything back. The hypervisor does the same when it is told."""
        self._socket.close()
        os.close(self._pipe_in)
        os.close(self._pipe_out)
        self._slot.close()


def _bytes_in(pipe: int) -> int:
    room = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, room)
    return room[0]
