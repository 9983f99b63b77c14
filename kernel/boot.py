"""From nothing to a hypervisor with its domains, and back."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec
import trio

from kernel.abi import packet
from kernel.abi.codec import Codec
from kernel.abi.hypercalls import ShutdownReason
from kernel.abi.ids import HYPERVISOR, Generation, Peer
from kernel.abi.keeping import KeepPipe, PipeEnded, PipeKind, TailMessage
from kernel.abi.log import open_log
from kernel.admin import listen, pass_connections_on
from kernel.core.domains import Kind
from kernel.driver_domains import start_dom0, start_driver
from kernel.guests import destroy, request_shutdown
from kernel.hypercall import dispatch
from kernel.incarnation import end
from kernel.link import Link
from kernel.machine import Machine
from kernel.manifest import Manifest
from kernel.run_folder import RunFolder
from kernel.spawn import Zygotes
from kernel.version import VERSION

__all__ = ["run_hypervisor"]

DESCRIPTORS_WANTED = 65536
"""Four for each domain, five for each image that is open."""

KEEPER_GRACE_S = 2.0
"""For the keeper to write what is still in its pipes."""

READY_DEADLINE_S = 60.0

_tail_codec = Codec(TailMessage)


async def run_hypervisor(manifest: Manifest, run: RunFolder, say: Callable[[str], None]) -> None:
    """Boot, serve until SIGINT or SIGTERM, shut down. `say` gets a line for a person at each step."""
    _raise_descriptor_limit()
    keeper, keeper_link, tails = _start_keeper(run)
    own = Peer(HYPERVISOR, Generation(1))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    keeper_link.post([KeepPipe(own, "hypervisor", PipeKind.LOG)], [reading])
    log = open_log(writing)
    log.info("hypervisor.started", version=VERSION, pid=os.getpid(), run=run.name)
    (run.path / "run.toml").write_text(_describe(manifest))
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            machine = Machine(manifest, run, log, nursery, Zygotes(nursery, log), keeper_link, dispatch)
            nursery.start_soon(_serve_keeper, machine)
            nursery.start_soon(pass_connections_on, machine, listen(run))
            await _boot_domains(machine, tails)
            await _ready(machine)
            say(f"triovisor {VERSION}, hypervisor {os.getpid()}, run {run.path}")
            say(f"ready: TRIOVISOR_RUN={run.path} tv list")
            log.info("hypervisor.ready")
            async for number in signals:
                say(f"{signal.Signals(number).name}: shutting down")
                break
            await _shut_down(machine)
            nursery.cancel_scope.cancel()
    log.info("hypervisor.stopped")
    os.close(writing)
    keeper_link.close()
    tails.close()
    _await_keeper(keeper)


def _start_keeper(run: RunFolder) -> tuple[subprocess.Popen[bytes], Link, socket.socket]:
    """The log keeper in a session of its own, so that a terminal's Ctrl-C does not reach it."""
    ours, theirs = packet.pair()
    dom0s, keepers = packet.pair()
    with theirs, keepers:
        descriptors = [theirs.fileno(), keepers.fileno()]
        command = [sys.executable, "-m", "kernel.keeper", *map(str, descriptors), str(run.path)]
        process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL, start_new_session=True)
    return process, Link(ours), dom0s


async def _serve_keeper(machine: Machine) -> None:
    """Take the keeper's word for which pipes are at their end, and let go of the copies."""
    machine.nursery.start_soon(machine.keeper.flush_forever)
    while True:
        data, descriptors = await machine.keeper.receive()
        packet.close_all(descriptors)
        if not data:
            machine.log.critical("keeper.died")
            return
        for message in _tail_codec.decode(data):
            if isinstance(message, PipeEnded):
                pipe = machine.pipes.pop((message.peer, message.kind), None)
                packet.close_all([] if pipe is None else [pipe])


async def _boot_domains(machine: Machine, tails: socket.socket) -> None:
    """Dom0 first, then the drivers. Zygotes of all roles warm up at once."""
    manifest = machine.manifest
    roles = {manifest.dom0.role, manifest.guests.role, *(driver.role for driver in manifest.driver)}
    async with trio.open_nursery() as nursery:
        for role in sorted(roles):
            nursery.start_soon(machine.zygotes.warm, role)
    start_dom0(machine, manifest.dom0, tails.fileno())
    for driver in manifest.driver:
        start_driver(machine, driver)


async def _ready(machine: Machine) -> None:
    """Wait until each driver and Dom0 has said that it runs."""
    with trio.fail_after(READY_DEADLINE_S):
        for domain in machine.drivers.values():
            await domain.serves.wait()


async def _shut_down(machine: Machine) -> None:
    """Guests are asked, then ended; then drivers; Dom0 last."""
    machine.stopping = True
    machine.log.info("hypervisor.stopping", guests=len(machine.guests))
    for guest in list(machine.guests.values()):
        if guest.incarnation:
            request_shutdown(machine, guest, ShutdownReason.POWEROFF)
    with trio.move_on_after(machine.manifest.shutdown_grace_s):
        for guest in list(machine.guests.values()):
            await guest.removed.wait()
    for guest in list(machine.guests.values()):
        await destroy(machine, guest)
    for kind in (Kind.DRIVER, Kind.DOM0):
        await _end_all(machine, kind)


async def _end_all(machine: Machine, kind: Kind) -> None:
    """Drivers have nothing to save: what they replied to is in the image. Ended at once, waited for with a bound."""
    incarnations = [i for i in machine.alive.values() if i.record.kind is kind]
    for incarnation in incarnations:
        end(machine, incarnation, "hypervisor shuts down")
    with trio.move_on_after(machine.manifest.shutdown_grace_s):
        for incarnation in incarnations:
            await incarnation.gone.wait()


def _await_keeper(keeper: subprocess.Popen[bytes]) -> None:
    try:
        keeper.wait(KEEPER_GRACE_S)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def _raise_descriptor_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _describe(manifest: Manifest) -> str:
    """`run.toml`: what ran, when, on what."""
    host = os.uname()
    lines = [
        f'version = "{VERSION}"',
        f'started = "{time.strftime("%Y-%m-%dT%H:%M:%S%z")}"',
        f'host = "{host.sysname} {host.release} {host.machine}"',
        f"pid = {os.getpid()}",
        f"manifest = '''{msgspec.json.encode(manifest).decode()}'''",
    ]
    return "\n".join(lines) + "\n"
