"""A client of xenstore for the tests, on its Unix socket: the wire, and nothing of ours but its constants."""

import socket
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel.abi.io.xs_wire import HEADER, Op, pack_message

__all__ = ["XsClient", "XsError"]

PATIENCE_S = 60.0


class XsError(Exception):
    """What the store answered, by name."""


class NoSuchNode(XsError):
    """ENOENT."""


class Conflict(XsError):
    """EAGAIN: of a transaction's end."""


class XsClient:
    """One connection. Blocking."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._events: deque[tuple[str, str]] = deque()
        self._requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, op: Op, body: bytes, transaction: int = 0) -> bytes:
        """One request; its answer's body. Raises XsError."""
        self._requests += 1
        self._socket.sendall(pack_message(op, self._requests, transaction, body))
        while True:
            answered, request, body = self._take()
            if answered == Op.WATCH_EVENT:
                self._keep(body)
                continue
            assert request == self._requests, "each request is answered once, in order"
            if answered == Op.ERROR:
                name = body.rstrip(b"\0").decode()
                raise {"ENOENT": NoSuchNode, "EAGAIN": Conflict}.get(name, XsError)(name)
            assert answered == op
            return body

    def read(self, path: str, transaction: int = 0) -> bytes:
        return self.ask(Op.READ, path.encode() + b"\0", transaction)

    def write(self, path: str, value: str, transaction: int = 0) -> None:
        self.ask(Op.WRITE, path.encode() + b"\0" + value.encode(), transaction)

    def rm(self, path: str) -> None:
        self.ask(Op.RM, path.encode() + b"\0")

    def watch(self, path: str, token: str) -> None:
        self.ask(Op.WATCH, f"{path}\0{token}\0".encode())

    def exists(self, path: str) -> bool:
        try:
            self.read(path)
        except NoSuchNode:
            return False
        return True

    def add(self, path: str) -> None:
        """Count up by one, in a transaction that is tried until it is done."""
        while True:
            transaction = int(self.ask(Op.TRANSACTION_START, b"\0").rstrip(b"\0"))
            try:
                before = int(self.read(path, transaction))
            except NoSuchNode:
                before = 0
            self.write(path, str(before + 1), transaction)
            try:
                self.ask(Op.TRANSACTION_END, b"T\0", transaction)
            except Conflict:
                continue
            return

    def next_event(self) -> tuple[str, str]:
        """Path and token of the next one, waited for."""
        while not self._events:
            op, _, body = self._take()
            assert op == Op.WATCH_EVENT
            self._keep(body)
        return self._events.popleft()

    def _keep(self, body: bytes) -> None:
        path, token, _ = body.decode().split("\0")
        self._events.append((path, token))

    def _take(self) -> tuple[int, int, bytes]:
        op, request, _, length = HEADER.unpack(self._whole(HEADER.size))
        return op, request, self._whole(length)

    def _whole(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            assert more, "the store closed the connection"
            data += more
        return data
