"""A console driver and guests that break the console ring's rules: they are ended, and the others' consoles go on."""

import mmap
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from kernel.abi.hypercalls import (
    Access,
    ChannelKind,
    ConsoleConnect,
    ConsoleFault,
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    GnttabGrant,
    GnttabMap,
)
from kernel.abi.io.consif import BEYOND, IN_BYTES, OUT_BYTES, PROD, SEEN, SESSION, SLOT, SLOTS, SLOTS_AT, WATCHERS
from kernel.abi.status import Status
from kernel.abi.upcalls import ConsoleBackend, ConsoleRing
from tests.adversaries.lab import INNOCENT, MANIFEST, start_lab
from tests.adversaries.puppet import sealed_memory
from tests.promises.events import wait_until
from tests.promises.lab import CONSOLE, ROOT, UNLIMITED

HOSTILE_DRIVER = MANIFEST.replace('"drivers.puppet.main"\n', '"drivers.puppet.main"\ndevice = "console"\n')
HONEST_DRIVER = MANIFEST.replace("[guests]", CONSOLE.format(restart=UNLIMITED) + "\n[guests]")


@pytest.fixture(scope="module")
def hostile_driver(tmp_path_factory, tree, images):
    with start_lab(tmp_path_factory.mktemp("hostile-driver"), tree, images, HOSTILE_DRIVER) as lab:
        yield lab


@pytest.fixture(scope="module")
def honest_driver(tmp_path_factory, tree, images):
    with start_lab(tmp_path_factory.mktemp("honest-driver"), tree, images, HONEST_DRIVER) as lab:
        yield lab


def words(memory):
    return memoryview(memory).cast("B")[:SLOTS_AT].cast("Q")


@contextmanager
def innocents_ring(puppet):
    """The innocent guest's ring, as the driver that it was given to has it: slots, doorbell."""
    ring = puppet.wait_upcall(ConsoleRing)
    assert ring.name == INNOCENT
    reply, (into,) = puppet.call(GnttabMap, owner=ring.frontend, ref=ring.in_ref, access=Access.READ_WRITE)
    assert reply.status is Status.OK
    bind = {"port": 1, "remote": ring.frontend, "remote_port": ring.port}
    reply, (bell,) = puppet.call(EvtchnBindInterdomain, **bind)
    assert reply.status is Status.OK
    with socket.socket(fileno=bell) as doorbell, mmap.mmap(into, IN_BYTES) as memory:
        os.close(into)
        yield memory, doorbell


@pytest.mark.parametrize(
    ("prod", "slot", "what"),
    [
        (SLOTS + 1, None, "slots run ahead"),
        (1, (1, 0, 0xFFFF, 0), "a slot too long"),
        (1, (1, 0, 4, 9), "a slot of no kind"),
        (1, (BEYOND, 0, 1, 0), "keys of no session"),
    ],
)
def test_a_driver_that_breaks_the_ring_is_ended_and_the_guest_serves_its_successor(hostile_driver, prod, slot, what):
    """Fewer times a minute than a guest may accuse its drivers; the other breaks are in tests/drivers/console."""
    lab = hostile_driver
    with lab.driver_puppet() as puppet, innocents_ring(puppet) as (memory, doorbell):
        if slot:
            SLOT.pack_into(memory, SLOTS_AT, *slot)
        header = words(memory)
        header[PROD] = prod
        header.release()
        doorbell.send(b"x")
        assert lab.wait_death(puppet) == f"fault: {what}"
    assert lab.client.exec(INNOCENT, ["true"]).status == 0
    assert lab.client.info(INNOCENT).generation == 1


def test_a_driver_that_lies_about_its_watchers_or_floods_its_doorbell_stops_no_guest(hostile_driver):
    lab = hostile_driver
    with lab.driver_puppet() as puppet, innocents_ring(puppet) as (memory, doorbell):
        header = words(memory)
        header[SEEN], header[WATCHERS] = 0, (1 << 64) - 1
        header.release()
        doorbell.setblocking(False)
        for _ in range(10_000):
            try:
                doorbell.send(b"x" * 512)
            except BlockingIOError:
                continue
        command = ["sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done > /dev/console"]
        assert lab.client.exec(INNOCENT, command).status == 0
        file = lab.run / "console" / f"{INNOCENT}.log"
        wait_until(lambda: b"line 59999" in file.read_bytes(), "all of it in the file")
        assert not lab.log.all("domain.died", peer=str(puppet.peer))


def console_answers(lab) -> bool:
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), "console", INNOCENT]
    done = subprocess.run(command, input=b"\necho an$((0))swer\n", capture_output=True, check=False, cwd=ROOT)
    return done.returncode == 0 and b"an0swer" in done.stdout


def test_the_consoles_of_others_go_on_while_a_guest_breaks_its_own(honest_driver):
    lab = honest_driver
    assert console_answers(lab)
    before = lab.client.info("console").generation
    for out_bytes, in_bytes, header, what in (
        (4096, IN_BYTES, {}, "fault: not the memory of a console ring"),
        (OUT_BYTES, 4096, {}, "fault: not the memory of a console ring"),
        (OUT_BYTES, IN_BYTES, {PROD: BEYOND}, "fault: prod runs back"),
        (OUT_BYTES, IN_BYTES, {SESSION: BEYOND}, "fault: not the memory of a console ring"),
    ):
        with lab.guest_puppet() as puppet, sealed_memory(size=out_bytes) as out, sealed_memory(size=in_bytes) as into:
            os.pwrite(out, b"".join(header.get(word, 0).to_bytes(8, "little") for word in range(SESSION + 1)), 0)
            backend = puppet.wait_upcall(ConsoleBackend).backend
            assert puppet.status(GnttabGrant, [out], ref=1, to=backend, access=Access.READ) is Status.OK
            assert puppet.status(GnttabGrant, [into], ref=2, to=backend, access=Access.READ_WRITE) is Status.OK
            port = {"port": 9, "remote": backend, "kind": ChannelKind.DOORBELL}
            assert puppet.status(EvtchnAllocUnbound, **port) is Status.OK
            assert puppet.status(ConsoleConnect, backend=backend, out_ref=1, in_ref=2, port=9) is Status.OK
            assert lab.wait_death(puppet) == what
    assert lab.client.info("console").generation == before
    assert console_answers(lab)


def test_a_guest_connects_and_accuses_only_where_it_may(honest_driver):
    lab = honest_driver
    with lab.guest_puppet() as puppet:
        backend = puppet.wait_upcall(ConsoleBackend).backend
        numbers = {"out_ref": 1, "in_ref": 2, "port": 9}
        assert puppet.status(ConsoleConnect, backend=puppet.peer, **numbers) is Status.ESTALE
        accusation = {"what": "lies", "evidence": ""}
        assert puppet.status(ConsoleFault, peer=backend, **accusation) is Status.ENOENT
        assert puppet.status(ConsoleConnect, backend=backend, **numbers) is Status.OK
        assert puppet.status(ConsoleConnect, backend=backend, **numbers) is Status.EEXIST
    assert console_answers(lab)
