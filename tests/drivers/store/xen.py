"""Debian's xenstored, its clients and its tests: downloaded and unpacked beside what set-up keeps, never installed."""

import functools
import mmap
import os
import select
import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kernel.abi.io.xs_wire import HEADER, Op, pack_message
from tests.not_possible import not_possible
from triovisor.provision.files import SetupError
from triovisor.provision.unpacked import locked

PACKAGES = ("xenstore-utils", "xen-utils-4.17")
DEADLINE_S = 20


@functools.cache
def xen_root() -> Path:
    """The folder with the packages' files as they would lie beneath `/`. Skips the test where they cannot be had."""
    try:
        with locked("xenstore") as packages:
            root = packages.folder / "current" / "root"
            if not all(
                (root / program).exists() for program in ("usr/bin/xenstore-ls", "usr/lib/xen-4.17/bin/xenstored")
            ):
                packages.unpack(PACKAGES)
            return root
    except SetupError as error:
        not_possible(f"Debian's xenstored: {error}")


def xen_program(name: str) -> Path:
    """`xenstored`, `test-xenstore`, `xenstore-ls` and so on. It runs with `xen_environment`."""
    root = xen_root()
    return next(found for folder in ("usr/lib/xen-4.17/bin", "usr/bin") if (found := root / folder / name).exists())


def xen_environment(socket_path: Path) -> dict[str, str]:
    """For a client of the xenstore that listens there."""
    libraries = xen_root() / "usr/lib/x86_64-linux-gnu"
    return os.environ | {"LD_LIBRARY_PATH": str(libraries), "XENSTORED_PATH": str(socket_path)}


class Client:
    """Speaks the wire, and keeps the watch events that come meanwhile."""

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self._got = bytearray()

    def ask(self, op: int, tx_id: int, body: bytes) -> tuple[int, bytes]:
        self.send(pack_message(op, 7, tx_id, body))
        while True:
            op, req_id, _, length = HEADER.unpack(self._take(HEADER.size))
            reply = self._take(length)
            if op != Op.WATCH_EVENT:
                assert req_id == 7
                return op, reply
            self.events.append(reply)

    def heard(self) -> list[bytes]:
        """The events until now: the answer to a question after them has come."""
        assert self.ask(Op.GET_DOMAIN_PATH, 0, b"0\0") == (Op.GET_DOMAIN_PATH, b"/local/domain/0\0")
        events = list(self.events)
        self.events.clear()
        return events

    def send(self, message: bytes) -> None:
        raise NotImplementedError

    def receive(self) -> bytes:
        raise NotImplementedError

    def _take(self, length: int) -> bytes:
        deadline = time.monotonic() + DEADLINE_S
        while len(self._got) < length:
            self._got += self.receive()
            assert time.monotonic() < deadline, f"{len(self._got)} of {length} bytes"
        taken = bytes(self._got[:length])
        del self._got[:length]
        return taken


class SocketClient(Client):
    """Dom0's, on a socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)

    def receive(self) -> bytes:
        received = self._socket.recv(1 << 16)
        assert received, "xenstored has hung up"
        return received

    def close(self) -> None:
        self._socket.close()


class RingClient(Client):
    """A domain's, on the page that it shares with xenstored."""

    RING = 1024
    REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = range(512, 516)
    """Of the page's words, each read and written in one piece: the other one looks at any time."""

    def __init__(self, folder: Path, domid: int) -> None:
        super().__init__()
        page = folder / str(domid)
        page.write_bytes(bytes(4096))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 4096)
        self._words = memoryview(self._page).cast("I")
        self._bell = folder / "bell"

    def send(self, message: bytes) -> None:
        """A part at a time, as there is room."""
        deadline = time.monotonic() + DEADLINE_S
        while message:
            taken, put = self._words[self.REQ_CONS], self._words[self.REQ_PROD]
            piece = message[: min(self.RING - (put - taken), self.RING - put % self.RING)]
            at = put % self.RING
            self._page[at : at + len(piece)] = piece
            self._words[self.REQ_PROD] = put + len(piece)
            message = message[len(piece) :]
            self._ring()
            assert time.monotonic() < deadline

    def receive(self) -> bytes:
        taken, put = self._words[self.RSP_CONS], self._words[self.RSP_PROD]
        if taken == put:
            select.select([], [], [], 0.0002)
            return b""
        at = taken % self.RING
        piece = self._page[self.RING + at : self.RING + min(self.RING, at + put - taken)]
        self._words[self.RSP_CONS] = taken + len(piece)
        self._ring()
        return piece

    def _ring(self) -> None:
        with self._bell.open("r+b", buffering=0) as bell:
            bell.write(b"!")


class XenStored:
    """A C xenstored with the domains that `domids` names, each introduced."""

    def __init__(self, folder: Path, domids: Sequence[int]) -> None:
        self.folder = folder
        self.socket = folder / "socket"
        self._clients: list[SocketClient] = []
        self.domains = {domid: RingClient(folder, domid) for domid in domids}

    def connect(self) -> SocketClient:
        self._clients.append(SocketClient(self.socket))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def c_xenstored(folder: Path, domids: Sequence[int] = ()) -> Iterator[XenStored]:
    """One that runs until the end of the block."""
    library = folder / "no_xen.so"
    compiler = shutil.which("gcc")
    if compiler is None:
        not_possible("a C compiler")
    source = Path(__file__).parent / "no_xen.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-O1", "-o", library, source], check=True
    )
    (folder / "0").write_bytes(bytes(4096))
    (folder / "port").write_text("1")
    os.mkfifo(folder / "bell")
    store = XenStored(folder, domids)
    environment = xen_environment(store.socket) | {
        "NO_XEN": str(folder),
        "LD_PRELOAD": str(library),
        "XENSTORED_RUNDIR": str(folder),
    }
    process = subprocess.Popen([xen_program("xenstored"), "-N", "-P"], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip(), "xenstored has not started"
        client = store.connect()
        for domid in domids:
            assert client.ask(Op.INTRODUCE, 0, b"%d\x001\x001\0" % domid) == (Op.INTRODUCE, b"OK\0")
        yield store
    finally:
        store.close()
        process.kill()
        process.communicate()
