"""From nothing to a hypervisor with its domains, and back."""

import os
import resource
import signal
import socket
import time
from collections.abc import Callable

import msgspec
import trio

from kernel import xenstore
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.ids import HYPERVISOR, Generation, Peer
from kernel.abi.keeping import PipeKind
from kernel.abi.log import open_log
from kernel.abi.run import ADMIN_SOCKET, STORE_SOCKET
from kernel.admin import listen, pass_connections_on
from kernel.boot_files import drivers_program
from kernel.core.domains import Kind
from kernel.driver_domains import start_dom0, start_driver
from kernel.guests import destroy, request_shutdown
from kernel.hypercall import dispatch
from kernel.incarnation import end
from kernel.inform import jail_in_words
from kernel.log_keeper import LogKeeper
from kernel.machine import Machine
from kernel.manifest import Manifest
from kernel.pausing import let_go
from kernel.run_folder import RunFolder
from kernel.spawn import Zygotes
from kernel.version import VERSION

__all__ = ["run_hypervisor"]

DESCRIPTORS_WANTED = 65536
"""Four for each domain, five for each image that is open."""

READY_DEADLINE_S = 60.0


async def run_hypervisor(manifest: Manifest, run: RunFolder, say: Callable[[str], None]) -> None:
    """Boot, serve until SIGINT or SIGTERM, shut down. `say` gets a line for a person at each step."""
    _raise_descriptor_limit()
    keeper = LogKeeper(run.path)
    writing = keeper.keep(Peer(HYPERVISOR, Generation(1)), "hypervisor", PipeKind.LOG)
    log = open_log(writing)
    log.info("hypervisor.started", version=VERSION, pid=os.getpid(), run=run.name)
    (run.path / "run.toml").write_text(_describe(manifest))
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            machine = Machine(manifest, run, log, nursery, Zygotes(nursery, log, _programs(manifest)), keeper, dispatch)
            nursery.start_soon(keeper.serve, log)
            nursery.start_soon(pass_connections_on, machine, listen(run, ADMIN_SOCKET, socket.SOCK_SEQPACKET))
            if xenstore.has_store(manifest):
                nursery.start_soon(xenstore.serve_streams, machine, listen(run, STORE_SOCKET, socket.SOCK_STREAM))
            await _boot_domains(machine)
            await _ready(machine)
            say(f"triovisor {VERSION}, hypervisor {os.getpid()}, run {run.path}")
            say(jail_in_words(machine.zygotes.missing))
            say(f"ready: TRIOVISOR_RUN={run.path} tv list")
            missing = machine.zygotes.missing
            log.info("hypervisor.ready", jail="reduced" if missing else "full", missing=missing)
            async for number in signals:
                say(f"{signal.Signals(number).name}: shutting down")
                break
            await _shut_down(machine)
            nursery.cancel_scope.cancel()
    machine.folders.close()
    log.info("hypervisor.stopped")
    os.close(writing)
    keeper.stop()


async def _boot_domains(machine: Machine) -> None:
    """Dom0 first, then the drivers. Zygotes of all roles warm up at once."""
    manifest = machine.manifest
    guests = {manifest.guests.role, manifest.native.role}
    roles = {manifest.dom0.role, *guests, *(driver.role for driver in manifest.driver)}
    async with trio.open_nursery() as nursery:
        for role in sorted(roles):
            nursery.start_soon(machine.zygotes.warm, role)
    start_dom0(machine, manifest.dom0)
    for driver in manifest.driver:
        start_driver(machine, driver)


async def _ready(machine: Machine) -> None:
    """Wait until Dom0 and each driver has said that it runs, or the driver is given up."""
    with trio.fail_after(READY_DEADLINE_S):
        for domain in machine.drivers.values():
            await domain.settled.wait()


async def _shut_down(machine: Machine) -> None:
    """Guests are asked, unless they stand still for a driver, then ended; then drivers; Dom0 last."""
    machine.stopping = True
    machine.log.info("hypervisor.stopping", guests=len(machine.guests))
    asked = [guest for guest in machine.guests.values() if guest.incarnation and let_go(machine, guest)]
    for guest in asked:
        request_shutdown(machine, guest, ShutdownReason.POWEROFF)
    with trio.move_on_after(machine.manifest.shutdown_grace_s):
        for guest in asked:
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


def _programs(manifest: Manifest) -> list[str]:
    """Programs that drivers run. One that is not there is missed when it is wanted."""
    return [drivers_program(driver.program) for driver in manifest.driver if driver.program]


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
