"""A client's stream over the death of the store: each request done once, each answer and event sent once.

The process that serves is forked here and dies by a real signal at each point of its work; the next one goes on with
the same descriptors and the same memory, as the hypervisor keeps them.
"""

import mmap
import os
import select
import signal
import socket
import struct

import pytest

from domains.runtime.faults import FaultPoints
from drivers.store.journal import Journal
from drivers.store.store import Store
from drivers.store.stream import Stream, StreamBroken
from kernel.abi.ids import DOM0
from kernel.abi.io.xs_wire import HEADER, Op, pack_message
from kernel.abi.store_io import SLOT_BYTES

POINTS = ("done", "begun", "written", "taken", "sent", "event-begun", "event-written")
STATE = 1 << 20
CONNECTION = 7


class Kept:
    """What outlives the store: its memory, the stream's server end, the pipe, the slot."""

    def __init__(self):
        self.state = os.memfd_create("state")
        os.ftruncate(self.state, STATE)
        self.slot = os.memfd_create("slot")
        os.ftruncate(self.slot, SLOT_BYTES)
        self.pipe = os.pipe2(os.O_NONBLOCK)
        server, self.client = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        server.setblocking(False)
        self.server = server.detach()

    def descriptors(self):
        return [os.dup(fd) for fd in (self.server, *self.pipe, self.slot)]

    def store(self):
        return Store(Journal(memoryview(mmap.mmap(self.state, STATE))))

    def close(self):
        self.client.close()
        for fd in (self.state, self.slot, *self.pipe, self.server):
            os.close(fd)


@pytest.fixture
def kept():
    kept = Kept()
    yield kept
    kept.close()


def incarnate(kept, crash_at=None, count=1):
    """Fork a store that serves the stream until it crashes, or the client goes. Its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        faults = FaultPoints()
        if crash_at:
            faults.arm(crash_at, count)
        store = kept.store()
        store.connect(CONNECTION, DOM0)
        stream = Stream(store, CONNECTION, kept.descriptors(), faults)
        kept.client.close()
        while True:
            if not stream.turn():
                select.select([kept.server], [], [], 0.002)
    except EOFError:
        os._exit(0)
    finally:
        os._exit(1)


def ask(client, op, body=b"", tx=0, request_id=1):
    client.sendall(pack_message(op, request_id, tx, body))


def take(client):
    """The next message: op, request id, body."""
    header = client.recv(HEADER.size, socket.MSG_WAITALL)
    op, request_id, _, length = HEADER.unpack(header)
    return op, request_id, client.recv(length, socket.MSG_WAITALL)


def reap(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("point", POINTS)
def test_each_request_is_done_and_answered_once_wherever_the_store_dies(kept, point, count):
    """Numbers of transactions count the requests that were done, numbers of requests the answers."""
    kept.client.settimeout(20)
    pid = incarnate(kept, point, count)
    ask(kept.client, Op.WATCH, b"/w\0token\0", request_id=1)
    for number in range(2, 9):
        if number % 2:
            ask(kept.client, Op.WRITE, b"/w\0%d" % number, request_id=number)
        else:
            ask(kept.client, Op.TRANSACTION_START, b"\0", request_id=number)
            ask(kept.client, Op.READ, b"/w\0", request_id=100 + number)
    assert reap(pid) == -signal.SIGSEGV
    pid = incarnate(kept)
    ask(kept.client, Op.READ, b"/\0", request_id=200)
    answers: list[tuple[int, int, bytes]] = []
    events: list[tuple[int, int, bytes]] = []
    while not answers or answers[-1][1] != 200:
        op, request_id, body = take(kept.client)
        (events if op == Op.WATCH_EVENT else answers).append((op, request_id, body))
    del answers[-1]
    assert [request_id for _, request_id, _ in answers] == [1, 2, 102, 3, 4, 104, 5, 6, 106, 7, 8, 108]
    started = [int(body.rstrip(b"\0")) for op, _, body in answers if op == Op.TRANSACTION_START]
    assert started == list(range(started[0], started[0] + 4))
    assert [body for op, _, body in answers if op == Op.READ] == [b"3", b"5", b"7"]
    assert {body for _, _, body in events} == {b"/w\0token\0"}
    assert 1 < len(events) <= 4, "one at first, one for each write, but for those that wait together"
    kept.client.setblocking(False)
    with pytest.raises(BlockingIOError):
        kept.client.recv(1)
    kept.client.close()
    assert reap(pid) == 0


def serve(kept, turns=1000):
    """In this process, until there is nothing to do."""
    store = kept.store()
    store.connect(CONNECTION, DOM0)
    stream = Stream(store, CONNECTION, kept.descriptors(), FaultPoints())
    try:
        while turns and stream.turn():
            turns -= 1
    except Exception:
        stream.close()
        raise
    return stream


def test_half_a_request_waits_for_its_other_half_over_a_change_of_stores(kept):
    request = pack_message(Op.WRITE, 9, 0, b"/a\0value")
    kept.client.sendall(request[:7])
    serve(kept).close()
    kept.client.sendall(request[7:20])
    serve(kept).close()
    kept.client.sendall(request[20:])
    serve(kept).close()
    assert take(kept.client) == (Op.WRITE, 9, b"OK\0")


def test_a_client_that_does_not_read_is_not_read_from(kept):
    for number in range(3000):
        try:
            kept.client.setblocking(False)
            kept.client.sendall(pack_message(Op.WRITE, number, 0, b"/a\0" + bytes(4000)))
            ask(kept.client, Op.READ, b"/a\0", request_id=number)
        except BlockingIOError:
            break
    stream = serve(kept)
    sent = number
    kept.client.setblocking(True)
    kept.client.settimeout(10)
    done = 0
    while done < sent:
        while stream.turn():
            pass
        op, request_id, body = take(kept.client)
        assert (op, request_id) == (Op.WRITE, done)
        while stream.turn():
            pass
        op, request_id, body = take(kept.client)
        assert (op, request_id, len(body)) == (Op.READ, done, 4000)
        done += 1
    stream.close()


@pytest.mark.parametrize("length", [4097, 0xFFFF_FFFF])
def test_a_message_that_is_too_long_ends_the_connection(kept, length):
    kept.client.sendall(struct.pack("<IIII", Op.WRITE, 1, 0, length))
    with pytest.raises(StreamBroken, match=str(length)):
        serve(kept)


def test_an_unknown_operation_is_answered_and_life_goes_on(kept):
    ask(kept.client, 99)
    ask(kept.client, Op.READ, b"/nothing\0", request_id=2)
    serve(kept).close()
    assert take(kept.client) == (Op.ERROR, 1, b"ENOSYS\0")
    assert take(kept.client) == (Op.ERROR, 2, b"ENOENT\0")


def test_descriptors_that_ride_along_are_left_behind(kept):
    request = pack_message(Op.MKDIR, 1, 0, b"/a\0")
    socket.send_fds(kept.client, [request[:5]], [kept.slot])
    socket.send_fds(kept.client, [request[5:]], [kept.slot, kept.state])
    serve(kept).close()
    assert take(kept.client) == (Op.MKDIR, 1, b"OK\0")


def test_a_client_that_goes_is_answered_first(kept):
    ask(kept.client, Op.MKDIR, b"/a\0")
    kept.client.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        serve(kept)
    assert take(kept.client) == (Op.MKDIR, 1, b"OK\0")
