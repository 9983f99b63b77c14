"""QEMU's storage daemon, which alone reads qcow2: a process for each image, with nothing in its hands but sockets.

It is a child of the driver, in the driver's jail. It has the image and what lies beneath it from `RawExport`s, exports
the disk that they make over NBD, and is asked about it over QMP (docs/interop/qmp-spec.txt of QEMU).
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["ANSWER_S", "Daemon", "DaemonFailed", "ImageFacts", "ImageRefused", "facts_of"]

ANSWER_S = 10.0
"""For anything that the daemon has to do by itself, without asking for a byte."""

ENDING_S = 1.0
"""For its end, once it has closed a connection."""

MAX_LINE = 1 << 20
"""Of QMP. What it tells of an image has some kilobytes."""

MAX_WORDS = 2048
"""Of its standard error that are kept, the last ones."""

_PR_SET_PDEATHSIG = 1
_SUBCLUSTERS = 32
"""Of a cluster with extended L2 entries: each is allocated alone."""

_BENEATH = {"driver": "raw", "node-name": "beneath", "read-only": True, "file": "file-beneath"}

_libc = ctypes.PyDLL(None)


class DaemonFailed(Exception):
    """It cannot be started, died, or broke a protocol: why, in one line."""


class ImageRefused(Exception):
    """It does not open this image: its own words, in one line."""


class ImageFacts(Struct, frozen=True):
    """What the daemon finds in an image. `beneath`: the name that the image has for what lies beneath it, "" for
    nothing. `piece_bytes`: how much of it is allocated at once. `damage`: why it should not be written, "" if it may.
    """

    size_bytes: int
    piece_bytes: int
    beneath: str
    damage: str


class _Details(Struct, frozen=True, rename={"extended_l2": "extended-l2"}):
    corrupt: bool = False
    extended_l2: bool = False


class _Specific(Struct, frozen=True):
    data: _Details = _Details()


class _Image(
    Struct,
    frozen=True,
    rename={
        "size_bytes": "virtual-size",
        "cluster_bytes": "cluster-size",
        "beneath": "backing-filename",
        "dirty": "dirty-flag",
        "specific": "format-specific",
    },
):
    size_bytes: int
    cluster_bytes: int
    beneath: str = ""
    dirty: bool = False
    encrypted: bool = False
    specific: _Specific = _Specific()


class _Node(Struct, frozen=True, rename={"name": "node-name"}):
    name: str
    image: msgspec.Raw


class _Error(Struct, frozen=True):
    desc: str


class _Said(Struct, frozen=True, rename={"greeting": "QMP", "result": "return"}):
    """A line of QMP: the greeting, an event, or an answer."""

    greeting: Any = None
    event: str = ""
    error: _Error | None = None
    result: msgspec.Raw = msgspec.Raw(b"")


class Daemon:
    """One running daemon. For one thread, with whose end it ends too. Nothing here waits for it, but `close`."""

    def __init__(self, program: str, image: socket.socket, beneath: socket.socket | None, *, read_only: bool) -> None:
        """Start it: it will be the client of these connections, which stay the caller's to close. Raises
        DaemonFailed."""
        self._line = bytearray()
        self._words = b""
        self._opening = json.dumps(_disk(beneath is not None, read_only=read_only))
        self.monitor, theirs = socket.socketpair()
        listening, self.disk = _connected_pair()
        given = [theirs, listening, image, *([beneath] if beneath else [])]
        command = [program, *_words_for(theirs, listening, image, beneath, self._opening, read_only=read_only)]
        with theirs, listening:
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[each.fileno() for each in given],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={},
                    preexec_fn=None if os.getpid() == 1 else _die_with_parent,
                )
            except (OSError, subprocess.SubprocessError) as error:
                self.monitor.close()
                self.disk.close()
                raise DaemonFailed(f"{program} cannot be started ({error}): run make setup") from error
        assert self._process.stderr is not None
        self.errors = self._process.stderr.fileno()
        os.set_blocking(self.errors, False)

    def tell(self, command: str, **arguments: Any) -> None:
        """Give an order of QMP."""
        order = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self.monitor.sendall(json.dumps(order).encode())

    def heard(self) -> list[_Said]:
        """What the monitor says, which has become readable. Raises DaemonFailed where it ended."""
        more = self.monitor.recv(65536)
        if not more:
            raise DaemonFailed("its monitor ended")
        self._line += more
        *lines, self._line = self._line.split(b"\n")
        if len(self._line) > MAX_LINE:
            raise DaemonFailed("its monitor talks without end")
        try:
            return [msgspec.json.decode(line, type=_Said) for line in lines]
        except msgspec.DecodeError as error:
            raise DaemonFailed(f"its monitor's word is no QMP: {error}") from error

    def read_errors(self) -> bool:
        """Take what it writes to its standard error, lest it waits for that. False where nothing more will come."""
        try:
            data = os.read(self.errors, 65536)
        except BlockingIOError:
            return True
        self._words = (self._words + data)[-MAX_WORDS:]
        return bool(data)

    def why_it_ended(self) -> ImageRefused | DaemonFailed:
        """It has ended, or is about to. Its last words, where it has any."""
        try:
            status = self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return DaemonFailed("it has not ended")
        while self.read_errors():
            pass
        last = (self._words.decode(errors="replace").splitlines() or [""])[-1]
        _, opening, why = last.partition(f"{self._opening}: ")
        if status == 1 and opening:
            return ImageRefused(why)
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return DaemonFailed(f"it ended ({how}) {last}".strip())

    def close(self) -> None:
        """End it at once, and wait until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self.monitor.close()
        self.disk.close()


def facts_of(nodes: bytes) -> ImageFacts:
    """What `query-named-block-nodes` answered. Raises DaemonFailed."""
    try:
        (raw,) = [node.image for node in msgspec.json.decode(nodes, type=list[_Node]) if node.name == "disk"]
        image = msgspec.json.decode(raw, type=_Image)
    except (msgspec.DecodeError, ValueError) as error:
        raise DaemonFailed(f"what it tells of the image is unknown: {error}") from error
    details = image.specific.data
    damage = "is marked as corrupt" if details.corrupt else "was not closed in order" if image.dirty else ""
    damage = "is encrypted" if image.encrypted else damage
    piece_bytes = image.cluster_bytes // (_SUBCLUSTERS if details.extended_l2 else 1)
    return ImageFacts(image.size_bytes, piece_bytes, image.beneath, damage)


def _words_for(
    monitor: socket.socket,
    listening: socket.socket,
    image: socket.socket,
    beneath: socket.socket | None,
    disk: str,
    *,
    read_only: bool,
) -> list[str]:
    """The command line. The order counts: what is beneath is there before what stands on it."""
    words = ["--blockdev", _connection("image", image, read_only=read_only)]
    if beneath is not None:
        words += ["--blockdev", _connection("file-beneath", beneath, read_only=True)]
        words += ["--blockdev", json.dumps(_BENEATH)]
    return [
        *words,
        "--blockdev", disk,
        "--nbd-server", f"addr.type=fd,addr.str={listening.fileno()},max-connections=1",
        "--export", f"type=nbd,id=disk,node-name=disk,name=,writable={'off' if read_only else 'on'}",
        "--chardev", f"socket,id=monitor,fd={monitor.fileno()}",
        "--monitor", "chardev=monitor,mode=control",
    ]  # fmt: skip


def _connection(name: str, connection: socket.socket, *, read_only: bool) -> str:
    server = {"type": "fd", "str": str(connection.fileno())}
    node = {"driver": "nbd", "node-name": name, "server": server, "export": "", "read-only": read_only}
    return json.dumps(node | {"discard": "unmap"})


def _disk(beneath: bool, *, read_only: bool) -> dict[str, Any]:
    """The disk itself. What is beneath it is ours to say, and never the image's; without lazy reference counts, for
    which each successor would have to look through the whole image."""
    return {
        "driver": "qcow2", "node-name": "disk", "read-only": read_only, "discard": "unmap", "lazy-refcounts": False,
        "file": "image", "backing": "beneath" if beneath else None,
    }  # fmt: skip


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    """A listening socket and, first in its queue, a connection to it. Its name is of the jail's network namespace;
    where the jail has none of its own, a stranger comes too late."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(b"\0" + os.urandom(16).hex().encode())
    listening.listen(0)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(listening.getsockname())
    return listening, connection


def _die_with_parent() -> None:
    """For a jail without a PID namespace, where the first process takes no other with it. It costs a fork of this
    process instead of a vfork."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
