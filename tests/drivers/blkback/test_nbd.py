"""NBD with an other end that is believed nothing: whatever it says is understood, or a ProtocolError."""

import contextlib
import errno
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.blkback import nbd
from drivers.blkback.nbd import Command, ProtocolError, Request
from drivers.blkback.raw_export import GROWING_BYTES, RawExport
from kernel.abi.io.blkif import RspStatus

U64 = st.integers(0, (1 << 64) - 1)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def test_a_request_and_a_reply_have_the_bytes_of_the_protocol():
    assert nbd.ask(Command.WRITE_ZEROES, nbd.NO_HOLE, 7, 512, 1024).hex() == (
        "25609513000200060000000000000007000000000000020000000400"
    )
    assert nbd.reply(7, 28).hex() == "674466980000001c0000000000000007"
    assert nbd.read_reply(nbd.reply(7, 28)) == (7, 28)


@given(st.binary(min_size=nbd.REQUEST_BYTES, max_size=nbd.REQUEST_BYTES))
def test_garbage_is_no_request(data):
    with pytest.raises(ProtocolError):
        nbd.read_request(data)


COMMANDS = st.sampled_from([0, 1, 2, 3, 4, 6, 5, 7, 0xFFFF])


@given(COMMANDS, st.sampled_from([0, 2, 1, 4]), U64, U64, st.integers(0, 1 << 31))
def test_a_request_comes_back_as_it_was_made_or_is_refused(command, flags, handle, offset, length):
    data = struct.pack(">IHHQQI", 0x25609513, flags, command, handle, offset, length)
    fine = command in (0, 1, 2, 3, 4, 6) and flags in (0, 2) and not (command < 2 and length > nbd.MAX_DATA)
    if fine:
        assert nbd.read_request(data) == Request(handle, command, flags, offset, length)
    else:
        with pytest.raises(ProtocolError):
            nbd.read_request(data)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_a_handshake_with_garbage_ends_in_a_protocol_error(data, client):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            nbd.negotiate(ours) if client else nbd.offer(ours, 512, read_only=True)


def test_both_ends_shake_hands(pair):
    ours, theirs = pair
    server = threading.Thread(target=nbd.offer, args=(theirs, 4096), kwargs={"read_only": False})
    server.start()
    assert nbd.negotiate(ours) == 4096
    server.join()


def test_a_silent_other_end_is_given_up(pair):
    ours, _ = pair
    ours.settimeout(0.05)
    with pytest.raises(ProtocolError, match="silent"):
        nbd.receive(ours, 1)


def exported(path: Path, connection: socket.socket, *, read_only: bool) -> RawExport:
    file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    return RawExport(connection, file, read_only=read_only, wake=lambda: None)


@pytest.mark.parametrize(
    ("read_only", "request_", "why"),
    [
        (True, nbd.ask(Command.WRITE, 0, 1, 0, 512), "WRITE of what is only read"),
        (True, nbd.ask(Command.TRIM, 0, 1, 0, 512), "TRIM of what is only read"),
        (True, nbd.ask(Command.FLUSH, 0, 1, 0, 0), "FLUSH of what is only read"),
        (False, nbd.ask(Command.READ, 0, 1, GROWING_BYTES, 1), "beyond"),
        (False, nbd.ask(Command.WRITE_ZEROES, 0, 1, (1 << 64) - 1, 2), "beyond"),
        (False, nbd.ask(Command.DISC, 0, 1, 0, 0), "ended the connection"),
        (False, nbd.ask(Command.WRITE, 0, 1, 0, 512)[:-1], "hung up"),
        (False, nbd.ask(Command.WRITE, 0, 1, 0, 512) + b"x" * 511, "hung up"),
    ],
)
def test_what_a_daemon_may_not_ask_of_a_file_ends_it_and_the_file_stays(tmp_path, pair, read_only, request_, why):
    file = tmp_path / "file"
    file.write_bytes(b"a" * 4096)
    ours, theirs = pair
    export = exported(file, ours, read_only=read_only)
    theirs.sendall(request_)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError, match=why):
        export.serve()
    export.close()
    assert file.read_bytes() == b"a" * 4096


def test_a_failed_flush_is_told_to_the_daemon_and_kept_for_a_guest(pair):
    """The kernel tells a write-back error once to a descriptor, and the daemon flushes for reasons of its own."""
    ours, theirs = pair
    woken = threading.Event()
    no_flush = os.open("/dev/null", os.O_RDWR)
    export = RawExport(ours, no_flush, read_only=False, wake=woken.set)
    assert export.take_failure() == RspStatus.OK
    theirs.sendall(nbd.ask(Command.FLUSH, 0, 5, 0, 0))
    export.serve()
    assert woken.wait(10)
    export.answer_slow()
    assert nbd.read_reply(nbd.receive(theirs, nbd.REPLY_BYTES)) == (5, errno.EIO)
    assert [export.take_failure(), export.take_failure()] == [RspStatus.IO_ERROR, RspStatus.OK]
    export.close()


@pytest.mark.parametrize("flags", [0, nbd.NO_HOLE])
def test_zeros_beyond_the_end_are_part_of_the_file(tmp_path, pair, flags):
    """QEMU takes what an image refers to beyond its file's end for damage."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1000)
    ours, theirs = pair
    woken = threading.Event()
    export = RawExport(ours, os.open(file, os.O_RDWR), read_only=False, wake=woken.set)
    theirs.sendall(nbd.ask(Command.WRITE_ZEROES, flags, 5, 512, 65536))
    export.serve()
    assert export.waits_for_us == 1
    assert woken.wait(10)
    export.answer_slow()
    assert nbd.read_reply(nbd.receive(theirs, nbd.REPLY_BYTES)) == (5, 0)
    assert export.waits_for_us == 0
    export.close()
    assert file.read_bytes() == b"a" * 512 + bytes(65536)


def test_a_file_is_served_as_qemu_wants_it(tmp_path):
    """An independent client: `qemu-io` reads and writes a file through an export."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * 1000)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen(1)

    def serve() -> None:
        connection, _ = listening.accept()
        connection.settimeout(20)
        woken = threading.Event()
        export = RawExport(connection, os.open(file, os.O_RDWR), read_only=False, wake=woken.set)
        export.offer()
        with contextlib.suppress(ProtocolError):
            while True:
                connection.recv(1, socket.MSG_PEEK)
                export.serve()
                if woken.wait(0.02):
                    woken.clear()
                    export.answer_slow()
        export.close()

    server = threading.Thread(target=serve)
    server.start()
    reads, writes = ["read -P 97 0 512", "read -P 0 1024 512"], ["write -P 98 2048 1024", "write -z 512 512"]
    orders = [*reads, *writes, "flush", "discard 0 512"]
    words = [word for order in orders for word in ("-c", order)]
    command = ["qemu-io", "-d", "unmap", "-f", "raw", *words, f"nbd+unix:///?socket={tmp_path}/s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    server.join(30)
    listening.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    assert file.read_bytes()[512:] == bytes(1536) + b"b" * 1024
