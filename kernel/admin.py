"""The admin socket: the hypervisor owns it and looks who calls; Dom0 serves."""

import os
import socket
import struct

import trio

from kernel.abi.ids import DOM0
from kernel.abi.upcalls import AdminConnection
from kernel.incarnation import post
from kernel.machine import Incarnation, Machine
from kernel.run_folder import RunFolder

__all__ = ["caller_of", "is_administrator", "listen", "pass_connections_on"]

BACKLOG = 64
"""Administrators that may wait while Dom0 restarts."""

_UCRED = struct.Struct("3i")


def listen(run: RunFolder, name: str, kind: socket.SocketKind) -> socket.socket:
    """Bind a socket for administrators in the run folder, by the folder's descriptor, since a path may be longer than a
    socket's name."""
    path = run.path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, kind)
    listening.bind(f"/proc/self/fd/{run.descriptor}/{name}")
    os.chmod(path, 0o660)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


async def pass_connections_on(machine: Machine, listening: socket.socket) -> None:
    """Accept administrators while there is a Dom0 to serve them."""
    with listening:
        while True:
            await trio.lowlevel.wait_readable(listening)
            dom0 = await _running_dom0(machine)
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, ConnectionError):
                continue
            with connection:
                _pass_on(machine, dom0, connection)


async def _running_dom0(machine: Machine) -> Incarnation:
    """Dom0's present incarnation; waits while there is none, as before the first one was ordered."""
    while True:
        peer = machine.active(DOM0) if DOM0 in machine.drivers else None
        incarnation = machine.alive.get(peer) if peer else None
        if incarnation and incarnation.started.is_set():
            return incarnation
        await trio.sleep(0.02)


def caller_of(connection: socket.socket) -> int:
    """The uid of who connected, in the host's user namespace, where the kernel shows true ones: inside another every
    stranger is 65534."""
    _pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def is_administrator(uid: int) -> bool:
    """Root, and the hypervisor's own user."""
    return uid in (0, os.geteuid())


def _pass_on(machine: Machine, dom0: Incarnation, connection: socket.socket) -> None:
    uid = caller_of(connection)
    if not is_administrator(uid):
        machine.log.warning("admin.refused", uid=uid)
        return
    post(machine, dom0, AdminConnection(uid), descriptors=(os.dup(connection.fileno()),))
