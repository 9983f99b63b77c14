"""Domains and programs that break the rules of xenstore on purpose: they are refused or ended, and nobody else
notices."""

import contextlib
import socket
import struct
import threading
import time

import pytest

from kernel.abi.io.xs_wire import HEADER, PAYLOAD_MAX, Op, pack_message
from kernel.abi.run import STORE_SOCKET
from tests.promises.events import EventLog, wait_until
from tests.promises.lab import start_lab
from tests.promises.native import create, last_end, native
from tests.promises.xs_client import XsClient, XsError

HOSTILE = """
import socket, sys
from domains.native import Domain
from domains.runtime.channel import Channel
from kernel.abi.codec import encode
from kernel.abi.hypercalls import XenstoreConnect
from kernel.abi.store_io import StoreRequest
async def main(domain: Domain) -> None:
    answer = await domain._domain.call(XenstoreConnect)
    channel = Channel(answer.descriptor)
    READ, WRITE, WATCH = 2, 11, 4
    def ask(number, op=READ, body=b"data\\0", tx=0):
        return encode([StoreRequest(number, op, tx, body)])
    what = domain.args[0]
    if what == "garbage":
        await channel.send(b"\\xc1 this is no msgpack")
    elif what == "unknown message":
        await channel.send(b"\\x91\\x91\\x63")
    elif what == "two at a time":
        await channel.send(encode([StoreRequest(1, READ, 0, b"data\\0"), StoreRequest(2, READ, 0, b"data\\0")]))
    elif what == "backwards":
        for number in (5, 4):
            await channel.send(ask(number, WRITE, b"data/x\\0y"))
    elif what == "descriptors":
        ours, theirs = socket.socketpair()
        await channel.send(ask(1), [ours.fileno(), theirs.fileno()])
        await channel.send(b"\\x90")
    elif what == "too long":
        await channel.send(b"\\x91\\x95\\x01\\x01\\x0b\\x00" + b"\\xc5\\x20\\x00" + bytes(8192))
    while (await channel.receive()).data:
        pass
    print("ended")
"""

FLOOD = """
import trio
from domains.native import Domain
from domains.runtime.channel import Channel
from kernel.abi.codec import encode
from kernel.abi.hypercalls import XenstoreConnect
from kernel.abi.store_io import StoreRequest
async def main(domain: Domain) -> None:
    answer = await domain._domain.call(XenstoreConnect)
    channel = Channel(answer.descriptor)
    print("floods", flush=True)
    await channel.send(encode([StoreRequest(1, 4, 0, b"data\\0t\\0")]))
    number = 1
    while True:
        number += 1
        await channel.send(encode([StoreRequest(number, 11, 0, b"data/%d\\0value" % (number % 900))]))
"""

STALLED_S = 1.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), store="true") as started:
        yield started


@pytest.fixture(autouse=True)
def _the_store_is_the_one_that_it_was(lab):
    pid = lab.pid_of("store")
    yield
    if any(each.name == "flood" for each in lab.client.list()):
        lab.client.destroy("flood")
    wait_until(lambda: all(each.kind != "native" for each in lab.client.list()), "no guest is left")
    assert lab.pid_of("store") == pid
    with XsClient(lab.run / STORE_SOCKET) as client:
        assert client.read("/local/domain/0/name") == b"dom0"


def store_log(lab) -> EventLog:
    info = next(each for each in lab.client.drivers() if each.name == "store")
    return EventLog(lab.run / "log" / f"store.{info.generation}.jsonl")


@pytest.mark.parametrize(
    "what", ["garbage", "unknown message", "two at a time", "backwards", "descriptors", "too long"]
)
def test_a_domain_that_breaks_the_channels_rules_loses_its_channel_and_is_named(lab, tmp_path, what):
    log = store_log(lab)
    mark = log.mark()
    create(lab, native(tmp_path, "hostile", HOSTILE, args=[what]))
    assert last_end(lab, "hostile")["reason"] == "poweroff"
    assert log.wait("client.ended", mark)["why"]


def test_a_domain_that_floods_and_never_reads_slows_nobody(lab, tmp_path):
    """It is not read from while it does not read; others are answered between its requests."""
    with XsClient(lab.run / STORE_SOCKET) as client:
        client.write("/probe", "x")
        create(lab, native(tmp_path, "flood", FLOOD))
        until = time.monotonic() + 2
        slowest = 0.0
        while time.monotonic() < until:
            asked = time.monotonic()
            client.read("/probe")
            slowest = max(slowest, time.monotonic() - asked)
        assert slowest < STALLED_S
        client.rm("/probe")


@pytest.mark.parametrize("length", [PAYLOAD_MAX + 1, 10 << 20, 0xFFFF_FFFF])
def test_a_program_that_announces_too_much_is_ended(lab, length):
    log = store_log(lab)
    mark = log.mark()
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(lab.run / STORE_SOCKET))
        rude.sendall(struct.pack("<IIII", Op.WRITE, 1, 0, length))
        rude.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert rude.recv(1) == b""
    assert str(length) in log.wait("client.ended", mark)["why"]


def test_programs_that_stop_in_the_middle_are_forgotten_when_they_go(lab):
    for size in (1, HEADER.size - 1, HEADER.size, HEADER.size + 3):
        with socket.socket(socket.AF_UNIX) as shy:
            shy.connect(str(lab.run / STORE_SOCKET))
            shy.sendall(pack_message(Op.WRITE, 1, 0, b"/shy\0value")[:size])
    with XsClient(lab.run / STORE_SOCKET) as client:
        assert not client.exists("/shy")


def test_a_program_that_never_reads_is_ended_when_it_is_far_behind(lab):
    """Its watch fires for all that others write; they are not held up by it."""
    log = store_log(lab)
    mark = log.mark()
    with XsClient(lab.run / STORE_SOCKET) as deaf, XsClient(lab.run / STORE_SOCKET) as client:
        deaf.watch("/many", "t" * 3000)
        ended = threading.Event()

        def write() -> None:
            number = 0
            while not ended.is_set():
                client.write(f"/many/{number % 20_000}", "x")
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_until(lambda: log.all("client.ended", mark), "its end", 90)
        finally:
            ended.set()
            writer.join()
        client.rm("/many")


@pytest.mark.parametrize(
    ("op", "body", "error"),
    [
        (Op.READ, b"/local/../etc/passwd\0", "EINVAL"),
        (Op.READ, b"no NUL", "EINVAL"),
        (Op.WRITE, b"/" + b"x" * 3000 + b"\0v", "EINVAL"),
        (99, b"\0", "ENOSYS"),
        (Op.TRANSACTION_END, b"T\0", "ENOENT"),
        (Op.SET_PERMS, b"/local\0n99999999\0", "ENOENT"),
    ],
)
def test_what_cannot_be_is_refused_by_xens_name_for_it(lab, op, body, error):
    with XsClient(lab.run / STORE_SOCKET) as client, pytest.raises(XsError, match=error):
        client.ask(op, body)
