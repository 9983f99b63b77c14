"""However a hypervisor ends, asked by a signal or killed: no process and no mount is left, and the next can start."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.abi.run import ADMIN_SOCKET
from tests.promises.events import wait_until
from tests.promises.lab import GONE_S, ROOT, start_lab
from tests.promises.load import verified_load
from tests.promises.processes import descendants_of, wait_gone


def mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


def mount_namespaces(pids: list[int]) -> set[str]:
    """Those of the given processes, but for the host's own. A process of a guest may have ended meanwhile."""
    links = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(f"/proc/{pid}/ns/mnt"))
    return links - {os.readlink("/proc/self/ns/mnt")}


def console(run: Path, guest: str) -> str:
    return (run / "console" / f"{guest}.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_hypervisor_that_is_asked_to_end_powers_its_guests_off_first(tmp_path, images, number):
    before = mounts()
    with start_lab(tmp_path, standby=True) as lab:
        lab.create("a", images("asked-a", 8))
        lab.create("b")
        family = descendants_of(lab.pid)
        with verified_load(lab.client, "a"):
            pass
        lab.hypervisor.process.send_signal(number)
        assert lab.hypervisor.process.wait(20) == 0
        wait_gone(family, GONE_S)
        for guest in ("a", "b"):
            assert "reboot: System halted" in console(tmp_path, guest)
            assert lab.log.all("guest.ended", name=guest, reason="poweroff")
        assert lab.log.all("hypervisor.stopped")
        assert mounts() == before
        assert not (tmp_path / ADMIN_SOCKET).exists()


def test_a_guest_that_does_not_power_off_is_ended_after_its_grace(tmp_path):
    """Its first process is a shell and no agent, so that nothing in it can be asked."""
    with start_lab(tmp_path, shutdown_grace_s=0.5) as lab:
        lab.create("deaf", extra="rdinit=/bin/sh")
        wait_until(lambda: "linux.uml" in {p.program for p in descendants_of(lab.pid)}, "the guest's system runs")
        family = descendants_of(lab.pid)
        assert lab.hypervisor.stop() == 0
        wait_gone(family, GONE_S)
        (ended,) = lab.log.all("guest.ended", name="deaf")
        assert ended["how"] == "destroyed"


def test_killed_hypervisors_leave_no_process_and_no_mount_and_their_run_folder_can_be_used_again(tmp_path, images):
    before = mounts()
    image = images("killed", 8)
    for _ in range(3):
        with start_lab(tmp_path, standby=True) as lab:
            lab.create("a", image)
            lab.create("b")
            with lab.client.command("a", ["load", "/dev/vda", "op=verify", "seconds=60", "span=4m"]):
                family = descendants_of(lab.pid)
                assert len(family) > 10
                own = mount_namespaces([process.pid for process in family])
                assert bool(own) is (lab.client.host()["jail"] == "full")
                lab.hypervisor.process.kill()
                wait_gone(family, GONE_S)
            assert lab.hypervisor.process.wait(5) == -signal.SIGKILL
            assert mounts() == before
    with start_lab(tmp_path, standby=True) as lab:
        lab.create("a", image)
        with verified_load(lab.client, "a"):
            lab.watch.kill()


def test_a_second_hypervisor_on_a_live_run_folder_is_refused_naming_the_first(tmp_path):
    with start_lab(tmp_path) as lab:
        command = [sys.executable, "-m", "kernel", "--run", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
        assert second.returncode == 1
        assert f"hypervisor {lab.pid} runs here" in second.stderr
        assert second.stderr.count("\n") == 1
        assert [domain.name for domain in lab.client.list()] == ["dom0", "blkback"], "the first is none the worse"


def test_two_hypervisors_run_side_by_side_and_one_outlives_the_other(tmp_path, images):
    with start_lab(tmp_path / "one") as one:
        one.create("g", images("side", 8))
        with start_lab(tmp_path / "two") as two:
            two.create("g", images("by-side", 8))
            with verified_load(one.client, "g"), verified_load(two.client, "g"):
                two.watch.kill()
        with verified_load(one.client, "g"):
            one.watch.kill()
