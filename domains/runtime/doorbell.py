"""A doorbell between two domains: a byte that says "look at the ring", and never waits.

A socket pair used only with MSG_DONTWAIT, not an eventfd: that has one O_NONBLOCK for both ends, so that a peer could
clear it, fill the counter, and hang who rings.
"""

import socket

__all__ = ["Doorbell"]

_RING = b"\x01"
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Doorbell:
    """One end of a doorbell. Owns its socket."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """What to wait for: readable when the peer has rung, or is gone."""
        return self._socket.fileno()

    def ring(self) -> None:
        """Wake the peer. A full doorbell has been rung already; a dead one is told by the hypervisor."""
        try:
            self._socket.send(_RING, _FLAGS)
        except OSError:
            return

    def drain(self) -> bool:
        """Take what the peer has rung. False when it is gone."""
        try:
            return bool(self._socket.recv(16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
