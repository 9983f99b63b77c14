"""Two native guests find each other by name, exchange packets and shared memory, and learn when the other is gone."""

import os
import signal

import pytest

from tests.promises.events import wait_until
from tests.promises.lab import start_lab
from tests.promises.native import console_of, create, last_end, native, wait_said

SERVER = """
from domains.native import *
async def main(domain):
    peer = await domain.wait_peer(domain.args[0])
    waiting = await domain.event_channels.alloc_unbound(peer, 1)
    bell_waiting = await domain.event_channels.alloc_doorbell(peer, 2)
    memory = await domain.grants.grant(peer, 8192, Access.READ)
    memory.view[:5] = b"hello"
    async with await waiting.connected() as channel:
        await channel.send(str(memory.ref).encode())
        for n in range(200):
            assert await channel.receive() == bytes([n]) * (1 + 300 * n)
            await channel.send(bytes([n]) * (1 + 300 * n))
        print("exchanged")
        bell = await bell_waiting.connected()
        await bell.wait()
        print("rung")
        memory.view[:5] = b"world"
        bell.ring()
        try:
            await channel.receive()
        except PeerGone as gone:
            print(gone)
"""

CLIENT = """
import trio
from domains.native import *
async def main(domain):
    peer = await domain.wait_peer(domain.args[0])
    with trio.fail_after(20):
        channel = await domain.event_channels.connect(peer, 1)
    shared = await domain.grants.map(peer, int(await channel.receive()), 8192)
    assert bytes(shared.view[:5]) == b"hello" and shared.view.readonly
    for n in range(200):
        await channel.send(bytes([n]) * (1 + 300 * n))
        assert await channel.receive() == bytes([n]) * (1 + 300 * n)
    bell = await domain.event_channels.bind_doorbell(peer, 2)
    bell.ring()
    await bell.wait()
    print(bytes(shared.view[:5]))
    shared.unmap()
    await trio.sleep_forever()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run")) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


@pytest.mark.parametrize("first", ["server", "client"])
def test_packets_memory_and_doorbells_pass_and_a_death_is_noticed(lab, tmp_path, first):
    server, client = f"server-{first}", f"client-{first}"
    pair = [
        native(tmp_path, server, SERVER, args=[client], peers=[client]),
        native(tmp_path, client, CLIENT, args=[server], peers=[server]),
    ]
    for config in pair if first == "server" else reversed(pair):
        create(lab, config)
    wait_said(lab, client, "b'world'")
    info = lab.client.info(client)
    os.kill(info.pid, signal.SIGKILL)
    end = last_end(lab, server)
    assert (end["reason"], end["how"]) == ("poweroff", "main returned"), console_of(lab, server)
    said = console_of(lab, server).splitlines()
    assert said == ["exchanged", "rung", f"domain {info.domid}.1 is gone"]


def test_one_that_waits_for_a_peer_that_dies_is_told(lab, tmp_path):
    text = """
from domains.native import *
async def main(domain):
    peer = await domain.wait_peer("mortal")
    waiting = await domain.event_channels.alloc_unbound(peer, 1)
    print("waits")
    try:
        await waiting.connected()
    except PeerGone as gone:
        print(gone)
        assert await domain.resolve("mortal") is None
        for call in (domain.event_channels.alloc_unbound(peer), domain.grants.grant(peer, 4096),
                     domain.event_channels.connect(peer, 1), domain.grants.map(peer, 1, 4096)):
            try:
                await call
            except Refused as refusal:
                print(refusal.status.name)
"""
    sleeps = "import trio\nasync def main(domain): await trio.sleep_forever()\n"
    create(lab, native(tmp_path, "waiter", text, peers=["mortal"]))
    create(lab, native(tmp_path, "mortal", sleeps, on_crash="preserve"))
    mortal = lab.client.info("mortal")
    wait_said(lab, "waiter", "waits")
    os.kill(mortal.pid, signal.SIGKILL)
    end = last_end(lab, "waiter")
    said = console_of(lab, "waiter").splitlines()
    assert end["reason"] == "poweroff", said
    assert said == ["waits", f"domain {mortal.domid}.1 is gone", *["ESTALE"] * 4]


def test_a_name_that_is_no_peer_is_refused(lab, tmp_path):
    text = "async def main(domain):\n    await domain.resolve('dom0')\n"
    create(lab, native(tmp_path, "curious", text, peers=["other"]))
    wait_until(lambda: lab.log.all("guest.ended", name="curious"), "its end")
    assert "'dom0' is no peer of curious: add it to peers in its TOML" in last_end(lab, "curious")["how"]
