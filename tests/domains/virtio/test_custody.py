"""A guest's vhost-user connection over the deaths of the processes that serve it: at every message, in every phase."""

import os
import socket
import threading

import pytest

from domains.virtio import blk
from domains.virtio.custody import Custody, FrontGone, FrontMessage, Resumed, encode_handled, receive
from domains.virtio.vhost_user import (
    BaseAsked,
    Event,
    Message,
    QueueResumed,
    QueueStarted,
    QueueStopped,
    Reply,
    Session,
    handed_on,
)
from kernel.abi.packet import close_all
from tests.domains.virtio.front_end import NEEDS_REPLY, VERSION, FrontEnd, packed
from tests.domains.virtio.guest_driver import GuestDriver
from tests.domains.virtio.test_vhost_user import FEATURES

SET_UP_MESSAGES = 14


class Server:
    """A process that serves a device, as far as its keeper sees it. It dies without a word: only its line closes."""

    def __init__(self, custody: Custody) -> None:
        self.line = socket.socket(fileno=custody.hand_over())
        self.session = Session(blk.features(read_only=False), blk.config_space(4096))
        self.served: QueueStarted | QueueResumed | None = None
        self.descriptors: list[int] = []
        self.gone: FrontGone | None = None

    def hear(self) -> FrontMessage | None:
        """The next message that is to be handled; what else comes is taken in on the way."""
        while True:
            try:
                told, descriptors = receive(self.line)
            except (BlockingIOError, EOFError):
                return None
            self.descriptors += descriptors
            match told:
                case Resumed():
                    self._note(self.session.resume(told.state, dict(zip(told.codes, descriptors, strict=True))))
                case FrontGone():
                    self.gone = told
                case FrontMessage():
                    self._pending = tuple(descriptors)
                    return told

    def handle(self, told: FrontMessage) -> None:
        events = self.session.take(Message(told.code, told.flags, told.payload, self._pending))
        self._note(events)
        reply = b"".join(event.data for event in events if isinstance(event, Reply))
        if BaseAsked() in events:
            reply = self.session.base_reply().data
        self.line.send(encode_handled(self.session.state(), reply))

    def _note(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, QueueStarted | QueueResumed):
                self.served = event
            elif isinstance(event, QueueStopped):
                self.served = None

    def die(self) -> None:
        self.line.close()
        close_all(self.descriptors)
        self.descriptors = []


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "front.sock")


@pytest.fixture
def custody(place):
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    listening.listen(1)
    custody = Custody(listening)
    yield custody
    custody.leave()


@pytest.fixture
def front(place, custody):
    guest = GuestDriver()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(place)
    front = FrontEnd(sock, guest)
    yield front
    front.close()
    guest.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def serve_until(custody: Custody, server: Server, ends, dies) -> Server:
    """Serve until `ends()`. `dies(number, answered)`: whether the server is to die now, at that message."""
    number = 0
    while not ends():
        custody.look()
        told = server.hear()
        if told is None:
            continue
        if dies(number, False):
            server.die()
            server = Server(custody)
            told = server.hear()
            assert told is not None, "a message that was not handled comes again"
        server.handle(told)
        if dies(number, True):
            server.die()
            server = Server(custody)
            told = None
        number += 1
    return server


def check_served(custody: Custody, server: Server, front: FrontEnd) -> None:
    """The next server has the queue, and the front end's own kick and call."""
    server.die()
    last = Server(custody)
    assert last.hear() is None
    assert isinstance(last.served, QueueResumed)
    assert last.served.layout == front.guest.layout
    assert handed_on(last.served) in last.descriptors
    os.eventfd_write(front.kick, 5)
    assert os.eventfd_read(last.served.kick) == 5
    last.die()


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("death", range(SET_UP_MESSAGES))
def test_a_server_may_die_at_each_message_of_the_set_up(custody, front, death, answered):
    setting_up = threading.Thread(target=front.set_up, kwargs={"features": FEATURES})
    setting_up.start()
    numbers = []

    def dies(number: int, was_answered: bool) -> bool:
        numbers.append(number)
        return (number, was_answered) == (death, answered)

    server = serve_until(custody, Server(custody), lambda: not setting_up.is_alive(), dies)
    assert max(numbers) == SET_UP_MESSAGES - 1
    check_served(custody, server, front)


def test_servers_may_die_at_every_message(custody, front):
    before = open_descriptors()
    setting_up = threading.Thread(target=front.set_up, kwargs={"features": FEATURES})
    setting_up.start()
    server = serve_until(custody, Server(custody), lambda: not setting_up.is_alive(), lambda _number, _answered: True)
    check_served(custody, server, front)
    assert open_descriptors() - before <= 7, "connection, line, and one descriptor for each kind of message"


def test_thousands_of_messages_leave_no_more_than_one(custody, front):
    setting_up = threading.Thread(target=front.set_up, kwargs={"features": FEATURES})
    setting_up.start()
    server = serve_until(custody, Server(custody), lambda: not setting_up.is_alive(), lambda _number, _answered: False)
    close_all(server.descriptors)
    server.descriptors = []
    before = open_descriptors()

    def flood() -> None:
        for _ in range(1000):
            front.send_memory()
            front.send_queue()

    flooding = threading.Thread(target=flood)
    flooding.start()
    while flooding.is_alive():
        custody.look()
        if told := server.hear():
            server.handle(told)
        close_all(server.descriptors)
        server.descriptors = []
    assert open_descriptors() <= before + 1
    check_served(custody, server, front)


def test_half_a_message_is_nobodys_until_it_is_whole(custody, front):
    server = Server(custody)
    for byte in packed(3, b"", VERSION | NEEDS_REPLY):
        custody.look()
        assert server.hear() is None
        server.die()
        server = Server(custody)
        front.socket.send(bytes([byte]))
    custody.look()
    told = server.hear()
    assert told == FrontMessage(3, VERSION | NEEDS_REPLY, b"")
    server.handle(told)
    custody.look()
    assert front.socket.recv(100) == packed(3, bytes(8), 5)
    server.die()


@pytest.mark.parametrize(
    ("sent", "broke"), [(packed(5)[:8] + b"\xff\xff\xff\x7f", "payload too long"), (b"", "")], ids=["rules", "hangup"]
)
def test_the_end_of_a_connection_is_told_and_a_breach_to_each_server(custody, front, sent, broke):
    custody.look()
    front.socket.send(sent) if sent else front.socket.shutdown(socket.SHUT_RDWR)
    custody.look()
    for life in range(2):
        server = Server(custody)
        assert server.hear() is None
        assert (server.gone.broke if server.gone else None) == (broke if broke else None), life
        server.die()
