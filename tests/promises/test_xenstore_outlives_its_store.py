"""xenstore over the death of the store: nothing that was acknowledged is lost, nothing is done twice, every watch still
fires. For native guests on their channels, and for programs of others on the Unix socket.
"""

import os
import signal
import threading
from functools import partial

import pytest

from kernel.abi.run import STORE_SOCKET
from tests.promises.events import wait_until
from tests.promises.lab import start_lab
from tests.promises.native import console_of, create, last_end, native, wait_said
from tests.promises.xs_client import XsClient

KILLS = 40

WRITER = """
import trio
from domains.native import Domain, Refused, Status
async def main(domain: Domain) -> None:
    store = domain.xenstore
    await store.write("data/ready", "yes")
    for number in range(int(domain.args[0])):
        await store.write("data/last", str(number))
        async def add(transaction):
            count = int(await transaction.read("data/count")) if number else 0
            await transaction.write("data/count", str(count + 1))
        await store.transact(add)
        assert await store.read("data/last") == str(number).encode()
        if number % 50 == 49:
            print("at", number + 1, flush=True)
    print("wrote", (await store.read("data/count")).decode(), flush=True)
    await trio.sleep_forever()
"""

WATCHER = """
import trio
from domains.native import Domain
async def main(domain: Domain) -> None:
    name, wanted = domain.args
    store = domain.xenstore
    await store.write("data/hello", "")
    await store.write(name, "")
    print("domid", domain.peer.domid, flush=True)
    async with store.watch(name) as watch:
        print("watches", flush=True)
        async for path in watch:
            value = await store.read(path)
            if value.decode() == wanted:
                break
    print("saw it", flush=True)
"""


@pytest.fixture(scope="module", params=["true", "false"], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), store=request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


@pytest.fixture
def client(lab):
    with XsClient(lab.run / STORE_SOCKET) as client:
        yield client


def _differs(client: XsClient, path: str, before: bytes) -> bool:
    return client.read(path) != before


def _more_than(counted: list[int], before: int) -> bool:
    return sum(counted) > before


def kill_store(lab) -> None:
    """And wait for its successor."""
    pid = lab.pid_of("store")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.pid_of("store") != pid, "another store")


def test_a_native_guest_loses_nothing_and_does_nothing_twice(lab, tmp_path, client):
    create(lab, native(tmp_path, "writer", WRITER, args=["2000"]))
    wait_said(lab, "writer", "at 50")
    last = f"/local/domain/{lab.client.info('writer').domid}/data/last"
    for _ in range(KILLS):
        before = client.read(last)
        kill_store(lab)
        wait_until(partial(_differs, client, last, before), "a write more")
    wait_said(lab, "writer", "wrote 2000")
    assert client.read(last) == b"1999"


def test_a_watch_of_a_native_guest_fires_after_the_store_died(lab, tmp_path, client):
    create(lab, native(tmp_path, "watcher", WATCHER, args=["data/word", "go"]))
    wait_said(lab, "watcher", "watches")
    domid = lab.client.info("watcher").domid
    for word in ("a", "b", "c"):
        kill_store(lab)
        client.write(f"/local/domain/{domid}/data/word", word)
    client.write(f"/local/domain/{domid}/data/word", "go")
    wait_said(lab, "watcher", "saw it")
    assert last_end(lab, "watcher")["reason"] == "poweroff"


def test_a_renamed_guest_has_its_new_name_in_the_store_whoever_serves(lab, tmp_path, client):
    create(lab, native(tmp_path, "before", WATCHER, args=["data/word", "go"]))
    wait_said(lab, "before", "watches")
    node = f"/local/domain/{lab.client.info('before').domid}/name"
    assert client.read(node) == b"before"
    lab.client.rename("before", "after")
    wait_until(lambda: client.read(node) == b"after", "the store has the new name")
    kill_store(lab)
    assert client.read(node) == b"after"


def test_programs_on_the_socket_go_on_under_forty_kills(lab, client):
    """Every acknowledged write is there, every transaction was done once, every change was told."""
    stop = threading.Event()
    counted = [0, 0]

    def count(which: int) -> None:
        with XsClient(lab.run / STORE_SOCKET) as own:
            while not stop.is_set():
                own.add(f"/count/{which}")
                own.add("/count/both")
                counted[which] += 1

    threads = [threading.Thread(target=count, args=(which,)) for which in (0, 1)]
    with XsClient(lab.run / STORE_SOCKET) as watching:
        watching.watch("/count", "t")
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            before = sum(counted)
            kill_store(lab)
            wait_until(partial(_more_than, counted, before), "a count more")
        stop.set()
        for thread in threads:
            thread.join()
        assert client.read("/count/0") == str(counted[0]).encode()
        assert client.read("/count/1") == str(counted[1]).encode()
        assert client.read("/count/both") == str(sum(counted)).encode()
        client.write("/count/end", "")
        paths = set()
        while "/count/end" not in paths:
            paths.add(watching.next_event()[0])
    assert {"/count", "/count/0", "/count/1", "/count/both"} <= paths
    client.rm("/count")


def test_devices_are_there_with_states_that_agree(lab, images, client):
    lab.create("web", images("web", 8))
    guest, driver = lab.client.info("web").domid, next(d.domid for d in lab.client.drivers() if d.name == "blkback")
    front, back = f"/local/domain/{guest}/device/vbd/51712", f"/local/domain/{driver}/backend/vbd/{guest}/51712"

    def states() -> tuple[bytes, bytes]:
        return client.read(f"{front}/state"), client.read(f"{back}/state")

    wait_until(lambda: states() == (b"4", b"4"), "a connected vbd")
    assert client.read(f"{front}/backend") == back.encode()
    kill_store(lab)
    assert states() == (b"4", b"4")
    client.watch(f"{back}/state", "s")
    seen: set[bytes] = set()
    os.kill(lab.pid_of("blkback"), signal.SIGKILL)
    while not {b"1", b"4"} <= seen or states() != (b"4", b"4"):
        client.next_event()
        seen |= set(states()) | {b"1"}
    client.watch("@releaseDomain", "gone")
    lab.client.destroy("web")
    while client.next_event()[0] != "@releaseDomain" or client.exists(f"/local/domain/{guest}/name"):
        pass
    assert not client.exists(back)


def test_a_guest_that_is_gone_leaves_nothing_and_a_reboot_is_another_domain(lab, tmp_path, client):
    create(lab, native(tmp_path, "watcher", WATCHER, args=["data/word", "go"]))
    wait_said(lab, "watcher", "watches")
    domid = lab.client.info("watcher").domid
    assert client.exists(f"/local/domain/{domid}/data/hello")
    lab.client.destroy("watcher")
    wait_until(lambda: not client.exists(f"/local/domain/{domid}"), "its nodes to be gone")


def test_a_guest_reaches_only_what_it_may(lab, tmp_path, client):
    client.write("/secret", "x")
    program = """
from domains.native import Domain, Refused
async def main(domain: Domain) -> None:
    store = domain.xenstore
    async def refused(call):
        try:
            await call
        except Refused as refusal:
            return refusal.status.name
        return "done"
    print(await refused(store.read("/secret")))
    print(await refused(store.write("/secret", "y")))
    print(await refused(store.write("name", "y")))
    print(await refused(store.read("data/no")))
    print(await refused(store.write("data/../x", "y")))
    print(await refused(store.write("data/big", bytes(5000))))
    print(await refused(store.write("data/big", bytes(2100))))
    print((await store.read("name")).decode(), await store.directory(""[:0] or "data"))
"""
    create(lab, native(tmp_path, "nosy", program, on_poweroff="preserve"))
    last_end(lab, "nosy")
    assert console_of(lab, "nosy").split("\n")[:8] == [
        "EACCES", "EACCES", "EACCES", "ENOENT", "EINVAL", "E2BIG", "ENOSPC", "nosy []",
    ]  # fmt: skip
    client.rm("/secret")
