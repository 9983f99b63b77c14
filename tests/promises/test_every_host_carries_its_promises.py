"""As root and as an ordinary user, with the full jail and with the reduced one: a driver's or an actor's crash and hang
cost their guest nothing, a guest can be paused, and nothing is left of a guest or a hypervisor that goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.abi.guest_config import Action
from tests.promises.actors import actor_of, kill_actor, own_load, wait_actor_below, wait_actor_serves
from tests.promises.events import wait_until
from tests.promises.hosts import HOSTS, Host, folder_for, image_in
from tests.promises.lab import DRIVER, GONE_S, Lab, start_lab
from tests.promises.load import verified_load
from tests.promises.processes import Process, descendants_of, links_of, wait_gone
from tests.promises.standing import assert_stands_still, system_ticks

KILLS, ACTOR_KILLS = 5, 10
BEATS = "heartbeat = { interval_s = 0.1, deadline_s = 0.5 }"


def guest_folders_of(lab: Lab) -> list[Path]:
    """Those that its guests can write in: a hypervisor holds the one above them all."""
    paths = [Path(path) for path in links_of(lab.pid, "fd").values()]
    return [path for path in paths if path.name.startswith("triovisor.") and path.parent == Path("/dev/shm")]


@pytest.fixture(scope="module", params=HOSTS, ids=str)
def host(request) -> Host:
    host: Host = request.param
    host.prefix()
    return host


@pytest.fixture(scope="module")
def folder(host) -> Iterator[Path]:
    with folder_for(host) as made:
        yield made


def start(host: Host, folder: Path, name: str):
    guests = f'ramdisk = "{folder}/guest/initramfs.cpio"\nlpj = "{folder}/guest/lpj"\n{BEATS}'
    run = folder / name
    run.mkdir(exist_ok=True)
    owner = folder.stat()
    os.chown(run, owner.st_uid, owner.st_gid)
    return start_lab(run, prefix=host.prefix(), standby=True, guests=guests)


@pytest.fixture(scope="module")
def lab(host, folder) -> Iterator[Lab]:
    with start(host, folder, "run") as started:
        yield started
        made = guest_folders_of(started)
    assert not any(path.exists() for path in made)


@pytest.fixture
def guest(lab, folder):
    """A guest with a disk, taken away again."""
    lab.create("g", image_in(folder, "disk.img"))
    yield "g"
    lab.destroy_all()


def family_of(lab: Lab, guest: str) -> list[Process]:
    """All processes of a guest: the reaper, what is beneath it, and what left its first process behind."""
    reaper = lab.client.info(guest).pid
    assert reaper is not None
    return [process for process in descendants_of(lab.pid) if process.pid == reaper] + descendants_of(reaper)


def test_the_jail_of_a_host_is_told_wherever_a_person_looks(lab, host):
    lacks = lab.client.host()["jail_lacks"]
    assert lab.client.host()["jail"] == host.jail
    assert ("mount" in lacks) == (host.jail == "reduced")
    assert {domain.jail for domain in lab.client.list()} == {host.jail}
    assert {driver.jail for driver in lab.client.drivers()} == {host.jail}
    (ready,) = lab.log.all("hypervisor.ready")
    assert (ready["jail"], ready["missing"]) == (host.jail, lacks)
    assert lab.hypervisor.greeting[1].startswith(f"jail: {host.jail}")


def test_a_killed_and_a_hung_driver_cost_its_guest_nothing(lab, guest):
    with verified_load(lab.client, guest):
        deaths = [lab.watch.kill() for _ in range(KILLS)]
        hung = lab.watch.strike(lambda _pid: lab.client.inject(DRIVER, "hang"))
    assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
    assert hung["how"].startswith("hung")
    (sampled,) = lab.log.all("domain.sampled", peer=hung["peer"])
    assert any("_hang" in line for line in sampled["threads"]), sampled


def test_a_guests_memory_becomes_a_core_while_it_lives_and_when_it_crashes(lab):
    lab.create("cored", on_crash=Action.COREDUMP_DESTROY)
    lab.run_in("cored", "sh", "-c", "echo ma$((6 * 7))rk > /tmp/mark")
    living = Path(lab.client.dump_core("cored").path).read_bytes()
    assert b"ma42rk\n" in living
    assert b"Linux version " in living
    with lab.client.command("cored", ["sh", "-c", "echo c > /proc/sysrq-trigger"]):
        dumped = wait_until(lambda: lab.log.all("guest.core_dumped", name="cored")[1:], "a core of the crash")
    assert b"ma42rk\n" in Path(dumped[0]["path"]).read_bytes()


def test_a_killed_and_a_hung_actor_cost_its_guest_a_pause(lab, guest):
    with own_load(lab, guest):
        for number in range(ACTOR_KILLS):
            if number % 5 == 4:
                lab.watch.kill()
            wait_actor_serves(lab, guest, kill_actor(lab, guest))
        since = lab.log.mark()
        os.kill(actor_of(lab, guest), signal.SIGSTOP)
        wait_actor_serves(lab, guest, since)
    assert lab.client.info(guest).generation == 1
    assert len(lab.log.all("domain.soft_reset", since, name=guest)) == 1
    before = family_of(lab, guest)
    lab.client.destroy(guest)
    wait_gone(before, GONE_S)


def test_a_paused_guest_stands_still_though_its_actor_and_driver_die_and_goes_on(lab, guest):
    with own_load(lab, guest):
        lab.client.pause(guest)
        assert_stands_still(lab, guest)
        wait_actor_serves(lab, guest, kill_actor(lab, guest))
        lab.watch.kill()
        assert_stands_still(lab, guest)
        lab.client.unpause(guest)
        before = system_ticks(lab, guest)
        lab.run_in(guest, "sleep", "0.1")
        assert sum(system_ticks(lab, guest).values()) > sum(before.values())


def test_a_guest_reboots_and_is_destroyed_without_a_trace(lab, guest):
    first = family_of(lab, guest)
    lab.client.shutdown(guest, reboot=True, wait_s=20)
    wait_until(lambda: lab.client.info(guest).generation == 2, "the guest's second generation")
    wait_gone(first, GONE_S)
    with verified_load(lab.client, guest):
        second = family_of(lab, guest)
    assert len(second) > 5
    lab.destroy_all()
    wait_gone(second, GONE_S)


def parts_of(family: list[Process]) -> dict[str, Process]:
    """A guest's processes by what they are. Only the reduced jail has an undertaker."""
    reaper, *beneath = family
    children = {process.pid: process for process in beneath if process.parent == reaper.pid}
    parts = {"reaper": reaper, "actor": children.pop(wait_actor_below(reaper.pid))}
    for process in children.values():
        parts["system" if process.program == "linux.uml" else "undertaker"] = process
    assert len(parts) == len(children) + 2
    return parts


def test_whatever_a_guest_cannot_be_without_is_killed_nothing_of_it_is_left(lab, host, folder):
    """In the full jail the namespace does it, in the reduced jail the undertaker. Actors are replaced meanwhile."""
    image = image_in(folder, "killed.img")
    vital = {"reaper", "system"} | ({"undertaker"} if host.jail == "reduced" else set())
    for part in sorted(vital):
        since = lab.log.mark()
        lab.create("victim", image)
        lab.run_in("victim", "sh", "-c", "sleep 600 > /dev/null < /dev/null &")
        wait_actor_serves(lab, "victim", kill_actor(lab, "victim"))
        family = family_of(lab, "victim")
        parts = parts_of(family)
        assert parts.keys() == vital | {"actor"}
        os.kill(parts[part].pid, signal.SIGKILL)
        lab.log.wait("guest.ended", since, name="victim", reason="crash")
        wait_gone(family, GONE_S)


def test_of_a_killed_hypervisor_no_process_is_left_and_the_next_one_takes_its_folders_away(host, folder):
    with start(host, folder, "killed") as lab:
        lab.create("a", image_in(folder, "other.img"))
        lab.create("b")
        left = guest_folders_of(lab)
        assert len(left) == (1 if host.jail == "reduced" else 0)
        with lab.client.command("a", ["load", "/dev/vda", "op=verify", "seconds=60", "span=4m"]):
            family = descendants_of(lab.pid)
            assert len(family) > 10
            lab.hypervisor.process.kill()
            wait_gone(family, GONE_S)
    with start(host, folder, "killed") as lab:
        lab.create("a")
        assert not any(path.exists() for path in left)


def test_the_demo_runs_on_the_poorest_host_and_says_which_jail_it_has():
    host = Host("ordinary user", "reduced")
    with folder_for(host) as folder:
        environment = os.environ | {"TRIOVISOR_CACHE": str(folder), "TRIOVISOR_RUNS": str(folder / "runs")}
        command = [*host.prefix(), sys.executable, "-m", "triovisor.demo"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in the reduced jail, without pid, mount, net, ipc, user:" in done.stdout
