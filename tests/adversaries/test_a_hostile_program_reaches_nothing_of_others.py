"""A native guest's program does its worst: it reaches nothing that was not given to it, and is the only one harmed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernel.abi.guest_config import DomainState, GuestConfig
from kernel.abi.status import Status
from kernel.keeping import BURST_BYTES
from tests.adversaries.lab import INNOCENT, Lab
from tests.promises.events import Event, wait_until
from tests.promises.native import native
from triovisor.client import TvError

NAME = "hostile"

REFUSALS_LOGGED = 60
"""The allowance, and what fills up again within the few seconds of a test."""

TRIES = """
import ctypes, importlib, json, os, signal, socket, subprocess, sys, trio
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

def syscall(*numbers):
    if libc.syscall(*numbers) < 0:
        raise OSError(ctypes.get_errno(), "")

TRIES = {
    "passwd": lambda: open("/etc/passwd"), "shadow": lambda: open("/etc/shadow"), "home": lambda: os.listdir("/root"),
    "proc": lambda: open("/proc/1/status"), "run folder": lambda: os.listdir(RUN),
    "image": lambda: open(IMAGE, "rb"), "write": lambda: open("/tmp/x", "w"),
    "write shm": lambda: open("/dev/shm/x", "w"), "write own code": lambda: open(os.__file__, "a"),
    "disk": lambda: os.open("/dev/sda", os.O_RDONLY),
    "inet": lambda: socket.socket(), "unix": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(socket.AF_NETLINK), "fork": os.fork, "exec": lambda: os.execv("/bin/sh", ["sh"]),
    "subprocess": lambda: subprocess.run(["/bin/true"]), "kill all": lambda: os.kill(-1, signal.SIGKILL),
    "ptrace": lambda: syscall(101, 16, 2, 0, 0), "mount": lambda: syscall(165, b"x", b"/", b"tmpfs", 0, 0),
    "unshare": lambda: syscall(272, 0x10000000), "setuid": lambda: os.setuid(0), "chroot": lambda: os.chroot("/"),
    "io_uring": lambda: syscall(425, 1, 0), "pidfd_getfd": lambda: syscall(438, 0, 0, 0),
    "other guests' code": lambda: importlib.import_module("domains.guests.actor"),
    "the kernel's code": lambda: importlib.import_module("kernel.hypercall"),
    "the toolstack's code": lambda: importlib.import_module("triovisor.client"),
}

async def main(domain):
    results = {}
    for name, attempt in TRIES.items():
        try:
            attempt()
            results[name] = "REACHED"
        except Exception as error:
            results[name] = type(error).__name__
    print(json.dumps(results))
"""

HYPERCALLS = """
import json
from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi.guest_config import GuestConfig
from domains.native import *

async def main(domain):
    call, results = domain._domain.call, []
    async def refused(*words, **fields):
        try:
            await call(*words, **fields)
            results.append("OK")
        except Refused as refusal:
            results.append(refusal.status.name)
    for operation, fields in {
        d.DomctlCreate: {"config": GuestConfig(name="stolen")}, d.DomctlDestroy: {"domid": 2},
        d.DomctlShutdown: {"domid": 2, "reason": 0}, d.DomctlGetInfo: {}, d.SysctlInfo: {}, d.SysctlDrivers: {},
        d.SysctlInject: {"driver": "blkback", "what": "exit"}, h.EvtchnResolve: {"name": "innocent"},
    }.items():
        await refused(operation, **fields)
    privileged, results[:] = list(results), []
    for domid in range(4):
        peer = Peer(domid, 1)
        for number in range(1, 20):
            await refused(h.EvtchnBindInterdomain, port=9, remote=peer, remote_port=number)
            await refused(h.GnttabMap, owner=peer, ref=number, access=Access.READ)
        await refused(h.XenbusFault, handle=1, peer=peer, what="liar", evidence="")
        await refused(h.XenbusConnect, handle=1, backend=peer, out_ref=1, in_ref=2, port=1)
    print(json.dumps([privileged, sorted(set(results))]))
"""


@contextmanager
def hostile(calm: Lab, folder: Path, text: str, *images: Path, **settings: Any) -> Iterator[GuestConfig]:
    config = native(folder, NAME, text, *images, **settings)
    calm.client.create(config)
    try:
        yield config
    finally:
        calm.destroy(NAME)


def end_of(calm: Lab, since: int) -> Event:
    return calm.log.wait("guest.ended", since, name=NAME)


def last_line(calm: Lab) -> Any:
    return json.loads(calm.client.dmesg(NAME).splitlines()[-1])


def test_nothing_of_the_host_can_be_reached(calm, tmp_path):
    since = calm.log.mark()
    image = calm.image()
    words = f"RUN, IMAGE = {str(calm.run)!r}, {str(image)!r}\n"
    with hostile(calm, tmp_path, words + TRIES):
        assert end_of(calm, since)["reason"] == "poweroff", calm.client.dmesg(NAME)
        results = last_line(calm)
        assert len(results) == 27
        assert {name: result for name, result in results.items() if result == "REACHED"} == {}


def test_no_hypercall_gives_it_what_is_not_its_own(calm, tmp_path):
    since = calm.log.mark()
    with hostile(calm, tmp_path, HYPERCALLS):
        assert end_of(calm, since)["reason"] == "poweroff", calm.client.dmesg(NAME)
        privileged, others = last_line(calm)
        assert set(privileged) == {"EPERM"}
        assert set(others) <= {"EPERM", "ENOENT", "ESTALE"}
        assert "stolen" not in [domain.name for domain in calm.client.list()]


@pytest.mark.parametrize("data", [r"b'\xc1'", "b'\\x91\\x05'", "b'x' * 65536"])
def test_a_packet_that_breaks_the_abi_ends_it_alone(calm, tmp_path, data):
    text = f"""
import trio
async def main(domain):
    domain._domain._control.socket.send({data})
    await trio.sleep_forever()
"""
    since = calm.log.mark()
    with hostile(calm, tmp_path, text):
        end = end_of(calm, since)
        assert end["reason"] == "crash"
        assert end["how"].startswith("fault: ")


def test_a_ring_that_it_breaks_ends_it_and_not_the_driver(calm, tmp_path):
    text = """
import struct, trio
from kernel.abi.io.blkif import PROD
async def main(domain):
    disk = domain.disks["vda"]
    await disk.read(0, 512)
    backing = disk._vbd.backing
    struct.pack_into("<I", backing.out_view, 4 * PROD, 0x7FFFFFFF)
    backing.ring_doorbell()
    await trio.sleep_forever()
"""
    since = calm.log.mark()
    with hostile(calm, tmp_path, text, calm.image()):
        end = end_of(calm, since)
        assert (end["reason"], end["how"]) == ("crash", "fault: req_prod runs ahead")


def test_one_that_accuses_its_drivers_too_often_is_ended_itself(calm, tmp_path):
    """Each of its words ends an incarnation of the driver, which its other guests see as a pause; a bounded number."""
    text = """
from domains.native import *
from kernel.abi.hypercalls import XenbusFault
import trio
async def main(domain):
    disk, handle = domain.disks["vda"], None
    for _ in range(20):
        await disk.read(0, 512)
        handle = next(iter(domain._xenbus._rings))[0]
        try:
            await domain._domain.call(XenbusFault, handle=handle, peer=disk._vbd.peer, what="liar", evidence="")
        except Refused:
            pass
"""
    since = calm.log.mark()
    with hostile(calm, tmp_path, text, calm.image()):
        assert end_of(calm, since)["how"] == "fault: accuses its backends too often"
    ended = [event for event in calm.log.all("domain.died", since, name="blkback") if event["how"] == "fault: liar"]
    assert len(ended) == 5
    wait_until(lambda: calm.client.exec(INNOCENT, ["true"]).status == 0, "the innocent guest answers")
    calm.note_peace()


FLOODS = {
    "ports": """
    channels, peer = domain.event_channels, Peer(0, ANY_GENERATION)
    while True:
        waiting = []
        with suppress(Refused):
            while True:
                waiting.append(await channels.alloc_unbound(peer))
        print(len(waiting))
        for each in waiting:
            await each.close()
""",
    "ports that it forgets": """
    while True:
        with suppress(Refused):
            await domain.event_channels.alloc_unbound(Peer(0, ANY_GENERATION))
        print(0)
""",
    "grants": """
    while True:
        granted = []
        with suppress(Refused):
            while True:
                granted.append(await domain.grants.grant(domain.peer, 4096))
        print(len(granted))
        for each in granted:
            await each.end()
""",
    "mappings": """
    granted = [await domain.grants.grant(domain.peer, 4096) for _ in range(100)]
    while True:
        for each in granted:
            with suppress(Refused):
                (await domain.grants.map(domain.peer, each.ref, 4096)).unmap()
        print(len(granted))
""",
    "questions for its peer": """
    while True:
        for _ in range(1000):
            assert await domain.resolve("innocent") is not None
        print(1000)
""",
    "many tasks at once": """
    async def ask():
        while True:
            with suppress(Refused):
                await domain.event_channels.bind_interdomain(Peer(1, 1), 1)
            with suppress(Refused):
                await domain.grants.map(Peer(1, 1), 1, 4096)
    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(ask)
        await trio.sleep(1)
        print(500)
""",
}


@pytest.mark.parametrize("body", FLOODS.values(), ids=list(FLOODS))
def test_what_it_asks_for_without_end_costs_nobody_else(calm, tmp_path, body):
    imports = "import trio\nfrom contextlib import suppress\nfrom domains.native import *\n"
    since, before = calm.log.mark(), calm.descriptors()
    text = f"{imports}async def main(domain):\n    print('floods')\n{body}"
    with hostile(calm, tmp_path, text, peers=["innocent"]):
        wait_until(lambda: len(calm.client.dmesg(NAME).split()) > 1, "it has done its worst once", 30)
        for _ in range(5):
            calm.check_innocents()
        assert calm.descriptors() < before + 400, "of its ports and grants, each of which has its bound"
        assert calm.client.info(NAME).state is DomainState.RUNNING
    wait_until(lambda: calm.descriptors() <= before + 4, "what it had is given back")
    assert not calm.log.all("domain.hung", since)
    assert len(calm.log.all("hypercall.refused", since)) <= REFUSALS_LOGGED


def test_one_that_hears_no_answer_is_hung_and_ended(calm, tmp_path):
    text = """
from kernel.abi.codec import encode
from kernel.abi.hypercalls import Version
async def main(domain):
    while True:
        try:
            domain._domain._control.socket.send(encode([Version(1)] * 100))
        except BlockingIOError:
            pass
"""
    since = calm.log.mark()
    with hostile(calm, tmp_path, text):
        for _ in range(5):
            calm.check_innocents()
        assert end_of(calm, since)["how"].startswith(("hung", "fault: "))


VICTIM = """
import os, trio
from contextlib import suppress
from domains.native import *
async def main(domain):
    peer = await domain.wait_peer("hostile")
    waiting = await domain.event_channels.alloc_unbound(peer, 1)
    bell_waiting = await domain.event_channels.alloc_doorbell(peer, 2)
    print("waits")
    channel, bell = await waiting.connected(), await bell_waiting.connected()
    async def listen():
        with suppress(PeerGone):
            while True:
                await bell.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        try:
            while True:
                await channel.receive()
        except PeerGone:
            nursery.cancel_scope.cancel()
    print("unharmed", os.dup(0) < 64)
    await trio.sleep_forever()
"""

ATTACKS = {
    "a flood": "while sent < 50_000: await send(b'x' * 4096)",
    "descriptors": "while sent < 500: await send(b'x', list(range(3)) * 20)",
    "too many descriptors": "await send(b'x', [0] * 100)",
    "a packet that is too long": "await send(b'x' * 100_000)",
    "an empty packet": "await send(b'')",
    "a flood of rings": "for _ in range(50_000): bell.ring(); await trio.sleep(0)",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_a_peer_survives_whatever_it_is_sent(calm, tmp_path, attack):
    text = f"""
import array, socket, trio
from domains.native import *
sent = 0
async def main(domain):
    peer = await domain.wait_peer("victim")
    channel = await domain.event_channels.connect(peer, 1)
    while True:
        try:
            bell = await domain.event_channels.bind_doorbell(peer, 2)
            break
        except Refused:
            await trio.sleep(0.01)
    sock = channel._channel.socket
    async def send(data, descriptors=()):
        global sent
        riding = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while True:
            await trio.lowlevel.wait_writable(sock)
            try:
                sock.sendmsg([data], riding)
                sent += 1
                return
            except OSError:  # no room, or too many descriptors on their way
                await trio.sleep(0)
    {attack}
"""
    since = calm.log.mark()
    victim = native(tmp_path, "victim", VICTIM, peers=[NAME])
    calm.client.create(victim)
    try:
        with hostile(calm, tmp_path, text, peers=["victim"]):
            end = end_of(calm, since)
            assert end["reason"] == "poweroff", calm.client.dmesg(NAME)
            wait_until(lambda: b"unharmed True" in calm.client.dmesg("victim"), "the victim goes on")
            assert calm.client.info("victim").state is DomainState.RUNNING
    finally:
        calm.destroy("victim")


def test_a_flood_on_its_console_is_bounded_and_counted(calm, tmp_path):
    text = """
async def main(domain):
    for _ in range(512):
        print("x" * 65535)
"""
    since = calm.log.mark()
    with hostile(calm, tmp_path, text):
        calm.check_innocents()
        assert end_of(calm, since)["reason"] == "poweroff"
    console = calm.run / "console" / f"{NAME}.log"
    wait_until(lambda: b"[log.gap: " in console.read_bytes(), "the gap is counted")
    assert console.stat().st_size < 2 * BURST_BYTES


def test_one_that_will_not_end_is_destroyed(calm, tmp_path):
    text = """
import trio
async def main(domain):
    while True:
        try:
            await trio.sleep_forever()
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
"""
    with hostile(calm, tmp_path, text):
        with pytest.raises(TvError, match=f"tv destroy {NAME} ends it") as late:
            calm.client.shutdown(NAME, wait_s=0.5)
        assert late.value.status is Status.ETIMEDOUT
        calm.client.destroy(NAME)
        assert NAME not in [domain.name for domain in calm.client.list()]
