"""kill -9 of the disk driver under a native guest that verifies what it writes: nothing is lost, no error is seen."""

import os
import signal
import time

import pytest

from tests.promises.lab import ROOT, start_lab
from tests.promises.native import console_of, create, last_end, native, wait_said

KILLS = 20
PROGRAM = (ROOT / "examples" / "native" / "verify.py").read_text()


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "cold"])
def test_twenty_kills_of_the_serving_driver_under_load_lose_nothing(tmp_path, images, standby):
    with start_lab(tmp_path / "run", standby=standby) as lab:
        image = images(f"native-{standby}", 32)
        create(lab, native(tmp_path, "verify", PROGRAM, image, args=["600", "32"]))
        wait_said(lab, "verify", "requests at once")
        deaths = [lab.watch.kill() for _ in range(KILLS)]
        assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
        lab.client.shutdown("verify", wait_s=30)
        said = console_of(lab, "verify")
        assert last_end(lab, "verify")["reason"] == "poweroff", said
        assert ", 0 lost" in said
        assert f"{KILLS} drivers lost" in said
        verified = int(said.splitlines()[-2].split()[0].replace(",", ""))
        assert verified > KILLS, "the load went on between the kills"
        assert lab.driver().restarts == KILLS


def test_a_driver_that_hangs_while_nobody_asks_is_found_by_the_next_request(tmp_path, images):
    """Nothing else would find it: it is asked for a sign of life once in a minute."""
    text = """
import trio
async def main(domain):
    disk = domain.disks["vda"]
    await disk.write(0, b"x" * 512)
    print("wrote")
    await trio.sleep(4)
    assert await disk.read(0, 512) == b"x" * 512
    print("read")
"""
    with start_lab(tmp_path / "run", heartbeat="{ interval_s = 1, deadline_s = 0.3, idle_s = 60 }") as lab:
        create(lab, native(tmp_path, "idle", text, images("hung", 1)))
        wait_said(lab, "idle", "wrote")
        peer = lab.watch.wait_serving()
        time.sleep(2.5)
        since = lab.log.mark()
        os.kill(lab.watch.pid_of(peer), signal.SIGSTOP)
        assert last_end(lab, "idle")["reason"] == "poweroff"
        assert console_of(lab, "idle") == "wrote\nread\n"
        assert lab.log.wait("domain.hung", since)["peer"] == peer


def test_the_verifier_finds_what_is_lost(tmp_path, images):
    """One block is overwritten behind its back, past the lock: then it says which, and ends as a crash."""
    with start_lab(tmp_path / "run") as lab:
        image = images("tampered", 1)
        create(lab, native(tmp_path, "verify", PROGRAM, image, args=["2", "1"]))
        wait_said(lab, "verify", "requests at once")
        with image.open("r+b") as file:
            while not lab.log.all("guest.ended", name="verify"):
                file.seek(0)
                file.write(bytes(1 << 20))
                file.flush()
                lab.log.read()
        end = last_end(lab, "verify")
        assert end["reason"] == "crash"
        assert "LOST: place" in end["how"]
