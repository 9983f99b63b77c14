"""Whatever comes over the admin socket gets an answer or an end; Dom0 lives, and others are served."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kernel.abi import packet
from kernel.abi.admin import AdminCreate, AdminDestroy, AdminExec, AdminList, AdminReply, Answer
from kernel.abi.codec import Codec, encode
from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.run import ADMIN_SOCKET
from kernel.abi.status import Status
from tests.adversaries.lab import Lab
from tests.not_possible import not_possible
from tests.promises.events import wait_until
from triovisor.client import Client, TvError

ANSWER_S = 20.0
STRANGER = 65534
TOO_LARGE = 150_000

_codec = Codec(AdminReply)

CONNECT_AS_STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    s.connect(f"/proc/self/fd/{sys.argv[1]}/admin.sock")
except PermissionError:
    print("refused")
else:
    s.settimeout(20)
    try:
        s.send(bytes.fromhex(sys.argv[3]))
        print("answered" if s.recv(65536) else "ended")
    except OSError:
        print("ended")
"""


@contextlib.contextmanager
def connection(lab: Lab) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(lab.client.path))
        sock.settimeout(ANSWER_S)
        yield sock


def answer(sock: socket.socket) -> Status | None:
    """What came; none where the connection was ended."""
    try:
        data = sock.recv(65536)
    except ConnectionResetError:
        return None
    if not data:
        return None
    (message,) = _codec.decode(data)
    assert isinstance(message, Answer)
    return message.status


REQUESTS = {
    "no msgpack": b"\xc1" * 100,
    "nested without end": b"\x91" * 65000,
    "nested without end in a request": b"\x91\x92\x02" + b"\x91" * 60000 + b"\xc0",
    "text that is no text": b"\x91\x92\x02\xa2\xff\xff",
    "65,000 requests": b"\xdd" + (65000).to_bytes(4, "big") + b"\x90" * 65000,
    "two requests": encode([AdminList(), AdminList()]),
    "no request": encode([]),
    "half a request": encode([AdminDestroy("innocent")])[:-3],
    "a request with a field too many": b"\x91\x92\x01\x01",
    "an unknown request": b"\x91\x92\x7f\x01",
    "a request that is too large": b"\x91\x92\x02\xdb" + TOO_LARGE.to_bytes(4, "big") + b"x" * TOO_LARGE,
    "a name without end": b"\x91\x92\x02\xda\xea\x60" + b"x" * 60000,
    "a name that is a path": b"\x91\x92\x05\xab" + b"../../innoc",
    "a name of control characters": b"\x91\x92\x05\xa4\x1b[2J",
    "a guest that is a number": b"\x91\x92\x03\x07",
    "memory without end": b"\x91\x92\x03\x82\xa4name\xa1x\xa6memory\xcf" + b"\xff" * 8,
    "a name with a newline": b"\x91\x92\x05\xa9innocent\n",
    "CPUs without end": b"\x91\x92\x03\x82\xa4name\xa1x\xa4cpus\xb4" + b"0-999999999999999999",
    "a CPU of five thousand digits": b"\x91\x92\x03\x82\xa4name\xa1x\xa4cpus\xda\x13\x88" + b"9" * 5000,
    "a count of nothing": b"\x91\x94\x09\xa7blkback\xa4exit\x00",
}
REFUSED = (Status.EINVAL, Status.ENOSYS)


@pytest.mark.parametrize("data", REQUESTS.values(), ids=list(REQUESTS))
def test_a_request_that_is_none_is_refused(calm: Lab, data):
    with connection(calm) as sock:
        sock.send(data)
        assert answer(sock) in REFUSED


FILES = {
    "a device": "/dev/zero",
    "a folder": "/",
    "a pipe": "/dev/stdin",
    "a path with NUL": "/tmp/\0x",
    "a path that is too long": "/" + "x/" * 2000 + "x",
    "a relative path": "x.img",
    "no path": ".",
    "the home of nobody": "~nobody-has-this-name/x",
    "a file in a file": "/etc/passwd/x",
}


MEMORY = "/proc/self/mem"
"""A regular file of no size, whose reading fails."""


@pytest.mark.parametrize("config", [{"disk": [DiskConfig(target=MEMORY, vdev="vda")]}, {"kernel": MEMORY}], ids=list)
def test_a_guest_of_a_file_that_cannot_be_read_is_refused(calm: Lab, config):
    with pytest.raises(TvError):
        calm.client.create(GuestConfig(name="odd", memory=32, **config))


@pytest.mark.parametrize("path", FILES.values(), ids=list(FILES))
@pytest.mark.parametrize("what", ["disk", "kernel", "ramdisk"])
def test_a_guest_of_files_that_are_none_is_refused(calm: Lab, path, what):
    disk = [DiskConfig(target=path, vdev="vda")] if what == "disk" else []
    files = {} if what == "disk" else {what: path}
    with pytest.raises(TvError) as refused:
        calm.client.create(GuestConfig(name="odd", memory=32, disk=disk, **files))
    assert refused.value.why
    assert "odd" not in [domain.name for domain in calm.client.list()]


def test_descriptors_that_come_along_are_closed(calm: Lab):
    dom0 = next(domain for domain in calm.client.list() if domain.name == "dom0")
    folder = f"/proc/{dom0.pid}/fd"
    before = len(os.listdir(folder))
    for _ in range(20):
        with connection(calm) as sock:
            packet.send(sock, encode([AdminList()]), [sock.fileno()] * 64)
            assert answer(sock) is Status.EINVAL
        with connection(calm) as sock:
            packet.send(sock, encode([AdminList()]), [sock.fileno()] * 253)
            assert answer(sock) is Status.EINVAL
    wait_until(lambda: len(os.listdir(folder)) <= before, f"Dom0 has {before} descriptors again")


def test_connections_that_come_and_go_without_a_word_hold_nobody_up(calm: Lab):
    for _ in range(300):
        with connection(calm):
            pass
    calm.client.list()


def test_connections_that_say_nothing_are_refused_beyond_a_bound_and_make_room_when_they_go(calm: Lab):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connection(calm)) for _ in range(200)]
        assert answer(silent[-1]) is Status.EAGAIN
    wait_until(lambda: _listed(calm), "tv list is served again")


def _listed(lab: Lab) -> bool:
    try:
        return bool(lab.client.list())
    except TvError as error:
        if error.status is not Status.EAGAIN:
            raise
        return False


def test_a_command_whose_client_breaks_the_protocol_is_ended(calm: Lab):
    packets = (b"\xc1", b"\x91" * 65000, b"\x91\x92\x02\x90", b"\x91\x92\x03\xc4\x01x", b"\x91\x92\x02\x91\xa2\xff\xff")
    for data in packets:
        with connection(calm) as sock:
            sock.send(encode([AdminExec("innocent")]))
            assert answer(sock) is Status.OK
            sock.send(data)
            while sock.recv(65536):
                pass


def test_a_stranger_is_not_served(calm: Lab):
    """Neither by the socket's mode, nor, where somebody has opened that, by the hypervisor."""
    if os.geteuid() != 0:
        not_possible("being another user needs root")
    since = calm.log.mark()
    folder = os.open(calm.run, os.O_PATH)
    path = calm.run / ADMIN_SOCKET
    calm.run.chmod(0o755)
    try:
        assert _as_stranger(folder) == "refused"
        path.chmod(0o666)
        assert _as_stranger(folder) == "ended"
        calm.log.wait("admin.refused", since, uid=STRANGER)
    finally:
        path.chmod(0o660)
        os.close(folder)


def _as_stranger(folder: int) -> str:
    request = encode([AdminDestroy("innocent")]).hex()
    command = [sys.executable, "-c", CONNECT_AS_STRANGER, str(folder), str(STRANGER), request]
    return subprocess.run(command, pass_fds=[folder], capture_output=True, text=True, check=True).stdout.strip()


def test_what_dom0_was_asked_for_is_done_though_it_is_killed_meanwhile(lab: Lab):
    """The administrator learns that his answer is lost; the guest is there, whole, or is not."""
    for _ in range(5):
        since = lab.log.mark()
        config = GuestConfig(name="orphan", memory=32, disk=[DiskConfig(target=str(lab.image()), vdev="vda")])
        dom0 = lab.log.all("domain.started", name="dom0")[-1]
        pid = lab.log.all("domain.cloned", peer=dom0["peer"])[0]["pid"]
        with connection(lab) as sock:
            sock.send(encode([AdminCreate(config)]))
            lab.log.wait("guest.created", since, name="orphan")
            os.kill(pid, signal.SIGKILL)
            assert answer(sock) in (None, Status.OK)
        lab.log.wait("domain.started", since, name="dom0")
        lab.log.wait("domain.started", since, name="orphan")
        assert "orphan" in [domain.name for domain in lab.client.list()]
        assert lab.client.exec("orphan", ["true"]).status == 0
        lab.client.destroy("orphan")
    lab.note_peace()


def test_an_administrator_who_comes_while_it_boots_is_served_once_dom0_runs(tmp_path):
    command = [sys.executable, "-m", "kernel", "--run", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as hypervisor:
        try:
            wait_until((tmp_path / ADMIN_SOCKET).is_socket, "there is an admin socket")
            assert Client(tmp_path).list()[0].name == "dom0"
        finally:
            hypervisor.send_signal(signal.SIGTERM)
        assert hypervisor.wait(20) == 0
