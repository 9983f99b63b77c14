"""A native guest is created, listed, told of, shut down, rebooted, destroyed; how it ends is what its settings say."""

import json
import os
import signal
import subprocess
import sys

import pytest

from kernel.abi.guest_config import Action, DomainState
from kernel.abi.status import Status
from tests.promises.events import wait_until
from tests.promises.lab import ROOT, start_lab
from tests.promises.native import console_of, create, last_end, native, wait_said
from triovisor import render
from triovisor.client import TvError

WAITS = "import trio\nasync def main(domain):\n    print('runs', domain.peer)\n    await trio.sleep_forever()\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(
        tmp_path_factory.mktemp("run"), native="heartbeat = { interval_s = 0.2, deadline_s = 1.0 }"
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def is_gone(lab, name: str) -> bool:
    return name not in [domain.name for domain in lab.client.list()]


def test_it_is_told_who_it_is_and_told_of_as_others_are(lab, tmp_path):
    text = """
import sys, trio
async def main(domain):
    print(domain.name, domain.peer, domain.args, domain.memory_mib, dict(domain.disks), __name__)
    print("to stderr", file=sys.stderr)
    print((await domain.version())["run"])
    domain.log.info("program.logged", field=3)
    await trio.sleep_forever()
"""
    create(lab, native(tmp_path, "teller", text, args=["a b", "ü"], memory=48))
    info = lab.client.info("teller")
    wait_said(lab, "teller", lab.run.name)
    peer = f"{info.domid}.{info.generation}"
    assert console_of(lab, "teller").splitlines() == [
        f"teller {peer} ('a b', 'ü') 48 {{}} program",
        "to stderr",
        lab.run.name,
    ]
    assert (info.kind, info.state, info.memory, info.restarts) == ("native", DomainState.RUNNING, 48, 0)
    assert "teller" in render.domain_list(lab.client.list())
    assert lab.log_of(peer, "teller").wait("program.logged")["field"] == 3


def tv(lab, *words: str) -> str:
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_tv_shows_it_as_any_guest(lab, tmp_path, images):
    create(lab, native(tmp_path, "shown", WAITS, images("shown", 1), memory=48))
    wait_said(lab, "shown", "runs")
    info = lab.client.info("shown")

    def line() -> list[str]:
        (found,) = [line.split() for line in tv(lab, "list").splitlines() if line.startswith("shown ")]
        return found

    assert line()[1:5] == [str(info.domid), "48", "1", "r-----"]
    told = dict(line.split(" : ") for line in tv(lab, "info", "shown").splitlines() if " : " in line)
    told = {key.strip(): value for key, value in told.items()}
    assert (told["kind"], told["state"], told["pid"]) == ("native", "running", str(info.pid))
    assert int(told["pid"]) > 0
    asked = json.loads(tv(lab, "info", "shown", "--json"))
    assert (asked["kind"], asked["vbds"][0]["vdev"], asked["vbds"][0]["backend"]) == ("native", "vda", "blkback")
    wait_until(lambda: lab.client.info("shown").vbds[0].state == "connected", "its disk")
    (driver,) = json.loads(tv(lab, "driver", "list", "--json"))
    assert [vbd["guest"] for vbd in driver["vbds"]] == ["shown"]
    tv(lab, "pause", "shown")
    assert line()[4] == "--p---"
    assert json.loads(tv(lab, "info", "shown", "--json"))["paused_for"] == ["dom0"]
    tv(lab, "unpause", "shown")
    assert line()[4] == "r-----"
    assert tv(lab, "dmesg", "shown").startswith("runs ")
    tv(lab, "shutdown", "shown", "--wait")
    assert is_gone(lab, "shown")


def test_commands_and_keys_are_refused_with_what_there_is_instead(lab, tmp_path):
    create(lab, native(tmp_path, "mute", WAITS))
    why = "no terminal and no agent: tv dmesg mute shows what it prints"
    with pytest.raises(TvError, match=why) as refusal:
        lab.client.exec("mute", ["true"])
    assert refusal.value.status is Status.EINVAL
    with pytest.raises(subprocess.CalledProcessError) as failed:
        tv(lab, "console", "mute")
    assert why in failed.value.stderr


def test_a_shutdown_cancels_main_which_may_tidy_up(lab, tmp_path, images):
    text = """
import trio
async def main(domain):
    try:
        print("runs")
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await domain.disks["vda"].write(0, b"tidied".ljust(512))
            await domain.disks["vda"].flush()
        print("tidied", end="")
"""
    image = images("tidy", 1)
    create(lab, native(tmp_path, "tidy", text, image))
    wait_said(lab, "tidy", "runs")
    lab.client.shutdown("tidy", wait_s=10)
    assert is_gone(lab, "tidy")
    assert image.read_bytes()[:6] == b"tidied"
    assert console_of(lab, "tidy") == "runs\ntidied"
    assert last_end(lab, "tidy")["reason"] == "poweroff"


def test_a_reboot_is_another_incarnation_with_the_program_as_it_is_then(lab, tmp_path):
    config = native(tmp_path, "again", WAITS)
    create(lab, config)
    (tmp_path / "again.py").write_text(WAITS.replace("runs", "runs anew"))
    lab.client.shutdown("again", reboot=True, wait_s=10)
    info = lab.client.info("again")
    assert (info.generation, info.restarts) == (2, 1)
    wait_said(lab, "again", f"runs anew {info.domid}.2")


ENDS = {
    "return": ("    return", "poweroff", "main returned"),
    "exit": ("    raise SystemExit", "poweroff", "main returned"),
    "exit status": ("    raise SystemExit(3)", "crash", "end.py:4: exit status 3"),
    "shutdown": ("    await domain.shutdown()", "poweroff", "exit status 0"),
    "own crash": (
        "    import domains.native as n\n    await domain.shutdown(n.ShutdownReason.CRASH, 'had enough')",
        "crash", "had enough",
    ),
    "exception": ("    {}['key']", "crash", "end.py:4: KeyError: 'key'"),
    "group": (
        "    async with trio.open_nursery() as nursery:\n        nursery.start_soon(trio.sleep, 'x')", "crash",
        "TypeError",
    ),
    "os._exit": ("    import os\n    os._exit(7)", "crash", "exit status 7"),
    "hang": ("    while True: pass", "crash", "hung"),
    "segfault": ("    import ctypes\n    ctypes.string_at(0)", "crash", "killed by SIGSEGV"),
    "too much memory": ("    x = bytes(400 << 20)", "crash", "end.py:4: MemoryError"),
    "too many threads": (
        "    import threading\n    for _ in range(1000): threading.Thread(target=threading.Event().wait).start()",
        "crash", "RuntimeError: can't start new thread",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_how_it_ended_is_told_and_harms_nobody(lab, tmp_path, how):
    body, reason, detail = ENDS[how]
    since = lab.log.mark()
    before = {domain.name: domain.generation for domain in lab.client.list()}
    create(lab, native(tmp_path, "end", f"import trio\nasync def main(domain):\n    print('runs')\n{body}\n"))
    end = last_end(lab, "end", since)
    assert end["reason"] == reason
    assert detail in end["how"], end
    wait_until(lambda: is_gone(lab, "end"), "nothing left of it")
    assert {domain.name: domain.generation for domain in lab.client.list()} == before
    if "end.py" in detail and "status" not in detail:
        assert "Traceback (most recent call last)" in console_of(lab, "end")
        assert 'File "end.py", line 4, in main' in console_of(lab, "end")


@pytest.mark.parametrize("shielded", [False, True], ids=["", "shielded"])
def test_one_that_leaves_no_memory_for_its_rings_is_its_own_loss(lab, tmp_path, images, shielded):
    """At once, though it may not want to be cancelled."""
    text = f"""
import trio
async def main(domain):
    taken = []
    try:
        while True:
            taken.append(bytes(1 << 20))
    except MemoryError:
        with trio.CancelScope(shield={shielded}):
            await trio.sleep_forever()
"""
    create(lab, native(tmp_path, "greedy", text, images(f"greedy-{shielded}", 1)))
    end = last_end(lab, "greedy")
    assert end["reason"] == "crash"
    assert "MemoryError" in end["how"] or "Cannot allocate memory" in end["how"]
    wait_until(lambda: is_gone(lab, "greedy"), "nothing left of it")
    assert lab.driver().restarts == 0


def test_what_crashes_is_restarted_if_its_settings_say_so_and_given_up_in_the_end(lab, tmp_path):
    text = "async def main(domain):\n    raise ValueError(domain.peer.generation)\n"
    since = lab.log.mark()
    create(lab, native(tmp_path, "fragile", text, on_crash=Action.RESTART))
    assert lab.log.wait("guest.given_up", since, name="fragile")["deaths"] == 10
    assert lab.client.info("fragile").state is DomainState.GIVEN_UP
    assert console_of(lab, "fragile").count("ValueError: ") == 10


def test_one_that_is_preserved_is_there_until_it_is_destroyed(lab, tmp_path):
    create(lab, native(tmp_path, "kept", "async def main(domain): pass\n", on_poweroff=Action.PRESERVE))
    wait_until(lambda: lab.client.info("kept").state is DomainState.SHUTDOWN, "its end")
    lab.client.destroy("kept")
    assert is_gone(lab, "kept")


def test_one_that_is_killed_harms_nobody(lab, tmp_path, images):
    create(lab, native(tmp_path, "other", WAITS))
    create(lab, native(tmp_path, "victim", WAITS, images("victim", 1)))
    os.kill(lab.client.info("victim").pid, signal.SIGKILL)
    wait_until(lambda: is_gone(lab, "victim"), "its end")
    assert last_end(lab, "victim")["how"] == "killed by SIGKILL"
    assert lab.client.info("other").state is DomainState.RUNNING
    assert lab.driver().restarts == 0
    assert lab.driver().vbds == []


def test_its_disk_does_all_that_it_offers(lab, tmp_path, images):
    text = """
async def main(domain):
    disk = domain.disks["vda"]
    await disk.write(0, b"x" * 8192)
    await disk.write_zeroes(512, 4096)
    await disk.write_zeroes(5120, 512, unmap=False)
    await disk.discard(6144, 512)
    await disk.flush()
    data = await disk.read(0, 8192)
    print(data[:6144] == b"x" * 512 + bytes(4096) + b"x" * 512 + bytes(512) + b"x" * 512)
"""
    image = images("offers", 1)
    create(lab, native(tmp_path, "offers", text, image))
    assert last_end(lab, "offers")["reason"] == "poweroff"
    assert console_of(lab, "offers") == "True\n"
    assert image.read_bytes()[:6144] == b"x" * 512 + bytes(4096) + b"x" * 512 + bytes(512) + b"x" * 512
