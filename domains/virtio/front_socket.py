"""The socket to a vhost-user front end: whole messages in, with their descriptors, and answers out."""

import array
import socket

from domains.virtio.vhost_user import HEADER, MAX_DESCRIPTORS, MAX_PAYLOAD, Message, ProtocolError
from kernel.abi.packet import close_all

__all__ = ["FrontSocket"]

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)


class FrontSocket:
    """The socket to one front end. Never blocks; takes one message at a time, so that descriptors stay with theirs."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._buffer = b""
        self._descriptors: list[int] = []

    def receive(self) -> Message | None:
        """One message, whose descriptors are the caller's; None while it is incomplete. Raises ProtocolError, and
        EOFError at the end."""
        if not self._fill(HEADER.size):
            return None
        code, flags, size = HEADER.unpack_from(self._buffer)
        if size > MAX_PAYLOAD:
            raise ProtocolError("payload too long", f"type {code}, {size} bytes")
        if not self._fill(HEADER.size + size):
            return None
        message = Message(code, flags, self._buffer[HEADER.size :], tuple(self._descriptors))
        self._buffer, self._descriptors = b"", []
        return message

    def _fill(self, length: int) -> bool:
        """Read until the buffer has `length` bytes."""
        while len(self._buffer) < length:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    length - len(self._buffer), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except ConnectionError:
                raise EOFError from None
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._descriptors.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
                raise ProtocolError("too many descriptors", f"more than {MAX_DESCRIPTORS}")
            if not data:
                raise EOFError
            self._buffer += data
        return True

    def send(self, answer: bytes) -> None:
        """Answer. Raises ProtocolError when the front end does not read its answers, EOFError when it is gone."""
        try:
            sent = self.socket.send(answer, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise ProtocolError("answers are not read") from None
        except OSError:
            raise EOFError from None
        if sent != len(answer):
            raise ProtocolError("answers are not read")

    def close(self) -> None:
        """End it, with every descriptor of a message that was never whole."""
        self.socket.close()
        close_all(self._descriptors)
        self._descriptors = []
