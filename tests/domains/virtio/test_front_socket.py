"""The socket to a vhost-user front end: whole messages with their own descriptors, from a front end gone bad too."""

import os
import socket
import struct

import pytest

from domains.virtio.front_socket import FrontSocket
from domains.virtio.vhost_user import Message, ProtocolError
from kernel.abi.packet import close_all
from tests.domains.virtio.front_end import packed
from tests.domains.virtio.test_vhost_user import REGION, U64


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    connection = FrontSocket(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def receive_all(connection):
    messages = []
    while (message := connection.receive()) is not None:
        messages.append(message)
    return messages


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def send(theirs, data, count=0):
    with open(os.devnull) as null:
        socket.send_fds(theirs, [data], [null.fileno()] * count)


def test_a_message_may_come_in_pieces(ends):
    connection, theirs = ends
    for byte in packed(3, flags=9):
        assert connection.receive() is None
        theirs.send(bytes([byte]))
    assert receive_all(connection) == [Message(3, 9, b"")]


def test_descriptors_stay_with_their_message(ends):
    connection, theirs = ends
    send(theirs, packed(5, REGION), 1)
    send(theirs, packed(3))
    send(theirs, packed(12, U64(0)), 2)
    memory, owner, kick = receive_all(connection)
    assert [len(each.descriptors) for each in (memory, owner, kick)] == [1, 0, 2]
    close_all([*memory.descriptors, *kick.descriptors])


def test_descriptors_of_a_message_that_was_never_whole_are_closed(ends):
    connection, theirs = ends
    before = open_descriptors()
    send(theirs, packed(5, REGION)[:20], 3)
    assert connection.receive() is None
    assert open_descriptors() == before + 3
    connection.close()
    assert open_descriptors() == before - 1


@pytest.mark.parametrize("pieces", [1, 20])
def test_too_many_descriptors_are_an_error(ends, pieces):
    connection, theirs = ends
    for piece in range(pieces):
        send(theirs, packed(5, REGION)[piece : piece + 1 if pieces > 1 else None], 20 // pieces)
    with pytest.raises(ProtocolError, match="too many"):
        receive_all(connection)


def test_an_endless_payload_is_an_error(ends):
    connection, theirs = ends
    theirs.send(struct.pack("<III", 5, 1, 1 << 31))
    with pytest.raises(ProtocolError, match="too long"):
        receive_all(connection)


def test_a_front_end_that_reads_no_answers_is_cut_off(ends):
    connection, _ = ends

    def answer_on_and_on():
        while True:
            connection.send(bytes(4096))

    with pytest.raises(ProtocolError, match="not read"):
        answer_on_and_on()


def test_the_end_of_the_connection_is_told(ends):
    connection, theirs = ends
    theirs.send(packed(3)[:5])
    theirs.close()
    with pytest.raises(EOFError):
        receive_all(connection)
