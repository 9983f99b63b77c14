"""Packets with descriptors over an AF_UNIX SEQPACKET socket, without blocking.

The sender's descriptors ride in SCM_RIGHTS. Received ones are closed on exec, and whoever takes a packet owns them.
"""

import array
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from kernel.abi.codec import MAX_PACKET
from kernel.abi.status import DomainFault

__all__ = ["MAX_DESCRIPTORS", "Packet", "close_all", "pair", "receive", "send"]

MAX_DESCRIPTORS = 64
"""In one packet. Linux allows 253 (SCM_MAX_FD); what comes for a vbd comes in packets of its own, with one or two."""

_INT_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT_BYTES)
_RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class Packet(NamedTuple):
    """One packet. `data` is empty at the end of the stream: the peer has closed, or sent nothing to mislead us."""

    data: bytes
    descriptors: list[int]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel, both non-blocking and closed on exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet whole. Raises BlockingIOError when the peer's queue is full, OSError when it is gone."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Packet:
    """Take one packet. Raises BlockingIOError when there is none, DomainFault when it or its descriptors were
    cut short."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
    except ConnectionResetError:
        # A peer that closed with packets of ours unread: Linux says so once, ahead of the peer's own last packets.
        data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        raise DomainFault(None, "packet cut short", bytes=len(data), descriptors=len(descriptors))
    return Packet(data, list(descriptors))


def close_all(descriptors: Sequence[int]) -> None:
    """Close what nobody took."""
    for descriptor in descriptors:
        os.close(descriptor)
