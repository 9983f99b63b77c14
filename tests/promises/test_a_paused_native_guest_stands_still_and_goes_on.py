"""`tv pause` of a native guest: its process stands still and goes on later, under load, and whatever dies meanwhile."""

import os
import signal
import time
from pathlib import Path

import pytest

from kernel.abi.guest_config import DomainState
from kernel.abi.status import Status
from tests.promises.events import wait_until
from tests.promises.lab import GONE_S, ROOT, start_lab
from tests.promises.native import console_of, create, last_end, native, wait_said
from tests.promises.processes import descendants_of, wait_gone
from triovisor.client import TvError

STILL_S = 0.4
DEADLINE_S = 0.5
"""Of its heartbeat: one that stands still is silent for longer than that, and no less alive."""

VERIFY = (ROOT / "examples" / "native" / "verify.py").read_text()
HEARTBEAT = f"heartbeat = {{ interval_s = 0.1, deadline_s = {DEADLINE_S} }}"

SPINS = """
import trio
def spin():
    while True: pass
async def main(domain):
    print("spins")
    await trio.to_thread.run_sync(spin)
"""
WAITS = "import trio\nasync def main(domain):\n    print('runs')\n    await trio.sleep_forever()\n"


@pytest.fixture(params=[True, False], ids=["standby", "cold"])
def loaded(request, tmp_path, images):
    """A lab with a guest that verifies what it writes. At the end nothing is lost."""
    with start_lab(tmp_path / "run", standby=request.param, native=HEARTBEAT) as lab:
        create(lab, native(tmp_path, "n", VERIFY, images(f"paused-{request.param}", 16), args=["600", "16"]))
        wait_said(lab, "n", "requests at once")
        yield lab
        lab.client.shutdown("n", wait_s=30)
        said = console_of(lab, "n")
        assert last_end(lab, "n")["reason"] == "poweroff", said
        assert ", 0 lost" in said
        assert int(said.splitlines()[1].split()[0].replace(",", "")) > 100
        assert not lab.log.all("domain.hung", name="n")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), native=HEARTBEAT) as started:
        yield started


def ticks(lab, guest: str) -> int:
    """The CPU time of all threads of a native guest, as the host tells it."""
    stat = Path(f"/proc/{lab.client.info(guest).pid}/stat").read_text()
    return sum(map(int, stat.rpartition(")")[2].split()[11:13]))


def assert_stands_still(lab, guest: str, for_s: float = STILL_S) -> None:
    before = ticks(lab, guest)
    time.sleep(for_s)
    assert ticks(lab, guest) == before
    assert lab.client.info(guest).state is DomainState.PAUSED


def assert_works(lab, guest: str) -> None:
    before = ticks(lab, guest)
    wait_until(lambda: ticks(lab, guest) > before, f"{guest} uses its CPU")
    assert lab.client.info(guest).state is DomainState.RUNNING


def test_under_verified_load_it_is_paused_again_and_again_for_longer_than_its_heartbeats_deadline(loaded):
    for number in range(5):
        loaded.client.pause("n")
        assert_stands_still(loaded, "n", STILL_S if number else 3 * DEADLINE_S)
        assert loaded.client.info("n").paused_for == ["dom0"]
        loaded.client.unpause("n")
        assert_works(loaded, "n")


def test_its_driver_may_die_while_it_is_paused_and_as_it_is_unpaused(loaded):
    for _ in range(5):
        loaded.client.pause("n")
        for _ in range(3):
            kill_active(loaded)
        loaded.client.unpause("n")
        loaded.watch.kill()


def kill_active(lab) -> None:
    """The serving incarnation, and wait for the next to start; its ring has to wait for the guest."""
    lab.watch.look()
    before = lab.watch.active
    os.kill(wait_until(lambda: lab.watch.pid_of(before), "it has a process"), signal.SIGKILL)
    lab.watch.wait_death(before)
    wait_until(lambda: next_of(lab, before), "a successor starts")


def next_of(lab, before: str) -> bool:
    lab.watch.look()
    return lab.watch.active != before and bool(lab.log.all("domain.started", peer=lab.watch.active))


def test_what_waits_for_it_stays_small_however_often_its_driver_dies(lab, tmp_path, images):
    """Sixteen disks, each with three words of the hypervisor's about each death: five times what it would keep."""
    disks = [images(f"many-{number}", 1) for number in range(16)]
    text = """
import trio
async def main(domain):
    async def use(disk):
        while not done:
            await disk.write(0, b"x" * 512)
    done = []
    print("writes")
    async with trio.open_nursery() as nursery:
        for disk in domain.disks.values():
            nursery.start_soon(use, disk)
        await trio.sleep_forever()
"""
    create(lab, native(tmp_path, "many", text, *disks))
    wait_said(lab, "many", "writes")
    lab.watch.wait_serving()
    lab.client.pause("many")
    for _ in range(100):
        kill_active(lab)
    assert_stands_still(lab, "many", 0.1)
    lab.client.unpause("many")
    lab.watch.wait_serving()
    assert_works(lab, "many")
    lab.watch.kill()
    lab.destroy_all()


def test_every_thread_of_one_that_computes_stands_still(lab, tmp_path):
    create(lab, native(tmp_path, "spins", SPINS))
    wait_said(lab, "spins", "spins")
    for _ in range(3):
        lab.client.pause("spins")
        assert_stands_still(lab, "spins")
        lab.client.unpause("spins")
        assert_works(lab, "spins")
    lab.client.pause("spins")
    lab.client.pause("spins")
    lab.client.destroy("spins")
    assert "spins" not in [domain.name for domain in lab.client.list()]


def test_it_has_no_way_to_go_on_by_itself(lab, tmp_path):
    """Neither by what it does with signals nor by what it says of itself."""
    text = """
import signal
from kernel.abi.hypercalls import PauseDone
async def main(domain):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    print("masked")
    while True:
        await domain._domain.say(PauseDone(1)) if domain.args else await domain.version()
"""
    create(lab, native(tmp_path, "masked", text))
    wait_said(lab, "masked", "masked")
    lab.client.pause("masked")
    assert_stands_still(lab, "masked")
    lab.client.destroy("masked")
    create(lab, native(tmp_path, "liar", text, args=["lie"]))
    assert last_end(lab, "liar")["how"] == "fault: a native guest says that it stands still: nobody asked it"


def test_its_clocks_have_gone_on_and_a_peer_waits_for_it(lab, tmp_path):
    """As for a machine that was suspended with its clock running; README says so."""
    paused = """
import time, trio
from domains.native import *
async def main(domain):
    peer = await domain.wait_peer("waits")
    channel = await (await domain.event_channels.alloc_unbound(peer, 1)).connected()
    print("sleeps")
    with trio.move_on_after(3):
        began, wall = time.monotonic(), time.time()
        while True:
            await channel.send(await channel.receive())
    print(time.monotonic() - began >= 4, time.time() - wall >= 4)
    while True:
        await channel.send(await channel.receive())
"""
    waits = """
import time, trio
from domains.native import *
async def main(domain):
    channel = await domain.event_channels.connect(await domain.wait_peer("paused"), 1)
    longest = 0
    while longest < 2:
        asked = time.monotonic()
        await channel.send(b"?")
        await channel.receive()
        longest = max(longest, time.monotonic() - asked)
    print("answered late")
    await trio.sleep_forever()
"""
    create(lab, native(tmp_path, "paused", paused, peers=["waits"]))
    create(lab, native(tmp_path, "waits", waits, peers=["paused"]))
    wait_said(lab, "paused", "sleeps")
    lab.client.pause("paused")
    time.sleep(4)
    lab.client.unpause("paused")
    wait_said(lab, "paused", "True True")
    wait_said(lab, "waits", "answered late")
    lab.destroy_all()


def test_it_takes_no_order_but_to_go_on_or_to_end(lab, tmp_path):
    create(lab, native(tmp_path, "still", WAITS))
    lab.client.pause("still")
    for act in (lambda: lab.client.exec("still", ["true"]), lambda: lab.client.shutdown("still", wait_s=5)):
        with pytest.raises(TvError) as caught:
            act()
        assert (caught.value.status, caught.value.why) == (Status.EHOSTDOWN, "guest still is paused: tv unpause still")
    lab.client.unpause("still")
    lab.client.shutdown("still", wait_s=5)
    assert last_end(lab, "still")["reason"] == "poweroff"


def test_one_that_is_killed_while_it_stands_still_is_restarted_and_runs(lab, tmp_path):
    create(lab, native(tmp_path, "killed", WAITS, on_crash="restart"))
    lab.client.pause("killed")
    os.kill(lab.client.info("killed").pid, signal.SIGKILL)
    wait_until(lambda: lab.client.info("killed").generation == 2, "its next incarnation")
    wait_until(lambda: lab.client.info("killed").state is DomainState.RUNNING, "it runs")
    lab.destroy_all()


def test_one_that_stands_still_goes_with_a_hypervisor_that_is_killed(tmp_path):
    with start_lab(tmp_path / "run") as lab:
        create(lab, native(tmp_path, "n", WAITS))
        wait_said(lab, "n", "runs")
        lab.client.pause("n")
        family = descendants_of(lab.pid)
        assert lab.client.info("n").pid in [process.pid for process in family]
        lab.hypervisor.process.kill()
        wait_gone(family, GONE_S)


def test_a_hypervisor_that_is_stopped_lets_it_go_on_to_tidy_up(tmp_path, images):
    text = (
        WAITS.replace("    await", "    try: await")
        + """
    finally:
        with trio.CancelScope(shield=True):
            await domain.disks["vda"].write(0, b"tidied".ljust(512))
"""
    )
    image = images("stopped", 1)
    with start_lab(tmp_path / "run", shutdown_grace_s=30.0) as lab:
        create(lab, native(tmp_path, "n", text, image))
        wait_said(lab, "n", "runs")
        lab.client.pause("n")
    assert [event["reason"] for event in lab.log.all("guest.ended", name="n")] == ["poweroff"]
    assert image.read_bytes()[:6] == b"tidied"
