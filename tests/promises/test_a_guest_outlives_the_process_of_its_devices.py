"""kill -9 of a guest's actor, the process that is its devices: another goes on; the guest sees a pause and no error."""

import contextlib
import os
import random
import signal
import threading
import time

import pytest

from kernel.abi.guest_config import Action
from tests.promises.actors import actor_below, actor_of, kill_actor, own_load, wait_actor_below, wait_actor_serves
from tests.promises.events import wait_until
from tests.promises.lab import Lab, start_lab
from tests.promises.processes import links_of

KILLS, BOTH_KILLS, BOOTS = 200, 40, 12


@pytest.fixture
def chance():
    return random.Random(7)


def kill_under_load(lab: Lab, chance: random.Random, kills: int, disks: int = 1) -> None:
    for _ in range(kills):
        wait_actor_serves(lab, "g", kill_actor(lab, "g"), disks)
        time.sleep(chance.uniform(0.1, 0.15))


def test_two_hundred_kills_of_the_actor_under_load_lose_nothing(tmp_path, images, chance):
    with start_lab(tmp_path) as lab:
        lab.create("g", images("actor", 32), memory=96)
        lasting = [lab.pid, lab.client.info("g").pid or 0, lab.watch.pid_of(lab.watch.wait_serving())]
        with own_load(lab, "g", depth=32, span="16m"):
            kill_under_load(lab, chance, 2)
            before = [len(links_of(pid, "fd")) for pid in lasting]
            kill_under_load(lab, chance, KILLS - 2)
            wait_until(
                lambda: all(len(links_of(pid, "fd")) <= count for pid, count in zip(lasting, before, strict=True)),
                f"hypervisor, reaper and driver have no more descriptors than {before}",
            )
        assert lab.client.info("g").generation == 1
        assert len(lab.log.all("domain.soft_reset", name="g")) == KILLS
        assert lab.driver().restarts == 0


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "cold"])
def test_actor_and_driver_killed_at_the_same_moment_lose_nothing(tmp_path, images, chance, standby):
    with start_lab(tmp_path, standby=standby) as lab:
        lab.create("g", images(f"both-{standby}", 32), memory=96)
        with own_load(lab, "g", depth=32, span="16m"):
            for number in range(BOTH_KILLS):
                before = lab.watch.wait_serving()
                victims = [actor_of(lab, "g"), lab.watch.pid_of(before)]
                since = lab.log.mark()
                for pid in victims if number % 2 else victims[::-1]:
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(chance.choice([0.0, 0.0, 0.002, 0.01]))
                serving = lab.watch.wait_serving(other_than=before)
                lab.log.wait("domain.soft_reset", since, name="g")
                lab.log.wait("vbd.connected", since, backend=serving)
                time.sleep(chance.uniform(0.1, 0.15))
        assert lab.client.info("g").generation == 1


def test_flushes_and_many_disks_go_on_over_kills(tmp_path, images, chance):
    """A flush is in flight most of the time: `op=fsync` waits for each write to be on the disk."""
    with start_lab(tmp_path) as lab:
        lab.create("g", *(images(f"many-{number}", 16) for number in range(3)), memory=96)
        with own_load(lab, "g"), own_load(lab, "g", "vdb", depth=1), own_load(lab, "g", "vdc", op="fsync"):
            kill_under_load(lab, chance, 30, disks=3)
        assert lab.client.info("g").generation == 1


def test_an_actor_may_die_at_any_moment_of_its_guests_boot(tmp_path, images):
    with start_lab(tmp_path) as lab:
        for number in range(BOOTS):
            since = lab.log.mark()
            creating = threading.Thread(target=lab.create, args=("g", images("boot", 16)))
            creating.start()
            pid = lab.log.wait("domain.cloned", since, name="g")["pid"]
            time.sleep(0.02 * number)
            os.kill(wait_actor_below(pid), signal.SIGKILL)
            creating.join(20)
            assert not creating.is_alive()
            script = "echo note-$0 | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; head -c 8 /dev/vda"
            assert lab.run_in("g", "sh", "-c", script, str(number)).startswith(b"note-%d" % number)
            assert lab.client.info("g").generation == 1
            lab.client.destroy("g")


def test_a_command_that_ran_is_killed_and_says_why_and_the_next_one_works(tmp_path):
    with start_lab(tmp_path) as lab:
        lab.create("g")
        with lab.client.command("g", ["sleep", "4243"]) as command:
            wait_until(lambda: b"sleep 4243" in lab.run_in("g", "ps"), "the command runs")
            kill_actor(lab, "g")
            ended = wait_until(command.take, "the command's end")[-1]
        assert (ended.status, ended.signal) == (None, None)
        assert "the guest's devices were restarted under it" in ended.why
        assert b"sleep 4243" not in lab.run_in("g", "ps")
        data = os.urandom(1 << 16)
        assert lab.client.exec("g", ["cat"], data).stdout == data


def test_the_console_loses_no_line_and_says_none_twice(tmp_path):
    lines = 400
    with start_lab(tmp_path) as lab:
        lab.create("g")
        script = f"i=0; while [ $i -lt {lines} ]; do echo line $i. > /dev/console; usleep 5000; i=$((i+1)); done"
        lab.run_in("g", "sh", "-c", f"setsid sh -c '{script}' < /dev/null > /dev/null 2>&1 &")
        console = lab.run / "console" / "g.log"
        while f"line {lines - 1}." not in (text := console.read_text()):
            wait_until(lambda: actor_of(lab, "g"), "the actor")
            kill_actor(lab, "g")
            time.sleep(0.2)
        said = [line.strip() for line in text.splitlines() if line.startswith("line ")]
        assert said == [f"line {number}." for number in range(lines)]


def test_a_guest_stands_still_or_goes_on_as_it_was_told_whatever_its_actor_does(tmp_path, images, chance):
    with start_lab(tmp_path) as lab:
        lab.create("g", images("paused", 16))
        with own_load(lab, "g"):
            for order, state in [(lab.client.pause, "paused"), (lab.client.unpause, "running")] * 4:
                ordering = threading.Thread(target=order, args=("g",))
                ordering.start()
                time.sleep(chance.choice([0.0, 0.002, 0.01, 0.1]))
                since = kill_actor(lab, "g")
                ordering.join(20)
                assert not ordering.is_alive()
                assert lab.client.info("g").state == state
                wait_actor_serves(lab, "g", since)
                assert lab.client.info("g").state == state


def test_an_actor_that_hangs_is_replaced_but_not_for_ever(tmp_path, images):
    with start_lab(tmp_path, guests="heartbeat = { interval_s = 0.1, deadline_s = 0.5 }") as lab:
        lab.create("g", images("hung", 16))
        with own_load(lab, "g"):
            for _ in range(3):
                since = lab.log.mark()
                os.kill(actor_of(lab, "g"), signal.SIGSTOP)
                wait_actor_serves(lab, "g", since)
        assert len(lab.log.all("domain.hung", name="g")) == 3
        os.kill(actor_of(lab, "g"), signal.SIGSTOP)
        assert lab.log.wait("guest.ended", name="g")["how"] == "hung: silent for 0.5 s"


@pytest.mark.parametrize(("reboot", "reason"), [(False, "poweroff"), (True, "reboot")])
def test_a_guest_whose_actor_dies_as_it_goes_down_ends_as_it_was_asked_to(tmp_path, reboot, reason):
    with start_lab(tmp_path) as lab:
        for number in range(8):
            since = lab.log.mark()
            lab.create("g", on_reboot=Action.DESTROY)
            lab.run_in("g", "true")
            actor = actor_of(lab, "g")
            lab.client.shutdown("g", reboot=reboot)
            time.sleep(0.004 * number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)
            assert lab.log.wait("guest.ended", since, name="g")["reason"] == reason


def test_actors_that_die_again_and_again_are_the_guests_crash(tmp_path):
    with start_lab(tmp_path) as lab:
        lab.create("g")
        reaper = lab.client.info("g").pid or 0
        while not lab.log.all("guest.ended", name="g"):
            actor = actor_below(reaper)
            with contextlib.suppress(ProcessLookupError):
                if actor:
                    os.kill(actor, signal.SIGKILL)
        (ended,) = lab.log.all("guest.ended", name="g")
        assert (ended["reason"], ended["how"]) == ("crash", f"exit status {128 + signal.SIGKILL}")
        assert len(lab.log.all("domain.soft_reset", name="g")) >= 20
