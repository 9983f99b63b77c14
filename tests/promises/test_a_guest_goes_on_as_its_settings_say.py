"""Power off, reboot, crash: what follows is what the guest's `on_*` say; a reborn guest has its disks and its data."""

import os
import signal
import struct
from pathlib import Path

import pytest

from kernel.abi.guest_config import Action, DomainState
from kernel.abi.status import Status
from tests.promises.events import wait_until
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load
from tests.promises.processes import children_of
from triovisor.client import TvError
from triovisor.render import state_slots

PANIC = "echo c > /proc/sysrq-trigger"
PATTERN = bytes(range(256)) * 16


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def end_by(lab: Lab, guest: str, script: str) -> None:
    """Run in the guest what is to be its end, and wait for that. The command does not outlive it."""
    ended = len(lab.log.all("guest.ended", name=guest))
    with lab.client.command(guest, ["sh", "-c", script]):
        wait_until(lambda: len(lab.log.all("guest.ended", name=guest)) > ended, f"an end of {guest}")


def reason(lab: Lab, guest: str) -> str:
    told: str = lab.log.all("guest.ended", name=guest)[-1]["reason"]
    return told


def is_gone(lab: Lab, guest: str) -> bool:
    return guest not in [domain.name for domain in lab.client.list()]


def wait_generation(lab: Lab, guest: str, generation: int) -> None:
    """Until that incarnation runs and its agent answers."""
    wait_until(
        lambda: (now := lab.client.info(guest)).generation == generation and now.state is DomainState.RUNNING,
        f"generation {generation} of {guest}",
    )
    lab.run_in(guest, "true")


def write_pattern(lab: Lab, guest: str) -> None:
    where = ["of=/dev/vda", "bs=4k", "count=1", "seek=5"]
    lab.run_in(guest, "dd", *where, "iflag=fullblock", "conv=notrunc,fsync", stdin=PATTERN)


def read_pattern(lab: Lab, guest: str) -> bytes:
    return lab.run_in(guest, "dd", "if=/dev/vda", "bs=4k", "count=1", "skip=5", "iflag=direct")


def test_a_guest_that_reboots_comes_back_as_the_next_generation_with_its_disk(lab, images):
    name = "reboots"
    lab.create(name, images(name, 8))
    write_pattern(lab, name)
    domid = lab.client.info(name).domid
    lab.client.shutdown(name, reboot=True, wait_s=20)
    wait_generation(lab, name, 2)
    assert read_pattern(lab, name) == PATTERN
    end_by(lab, name, "reboot -f")
    wait_generation(lab, name, 3)
    assert read_pattern(lab, name) == PATTERN
    assert reason(lab, name) == "reboot"
    assert lab.client.info(name).domid == domid
    with verified_load(lab.client, name):
        lab.watch.kill()
        lab.watch.kill()


def test_a_guest_may_reboot_and_its_driver_die_at_once(lab, images):
    name = "both"
    lab.create(name, images(name, 8))
    write_pattern(lab, name)
    for generation in range(2, 6):
        with lab.client.command(name, ["reboot", "-f"]):
            os.kill(lab.watch.pid_of(lab.watch.serving() or lab.watch.active), signal.SIGKILL)
            wait_generation(lab, name, generation)
        assert read_pattern(lab, name) == PATTERN


def test_a_guest_that_is_not_to_be_restarted_is_gone_after_a_reboot(lab):
    lab.create("once", on_reboot=Action.DESTROY)
    lab.client.shutdown("once", reboot=True, wait_s=20)
    assert is_gone(lab, "once")


def test_a_guest_that_powers_off_is_gone_and_its_image_free(lab, images):
    image = images("off", 8)
    lab.create("off", image)
    write_pattern(lab, "off")
    lab.client.shutdown("off", wait_s=20)
    assert is_gone(lab, "off")
    assert reason(lab, "off") == "poweroff"
    assert image.read_bytes()[5 * 4096 : 6 * 4096] == PATTERN
    lab.create("heir", image)
    assert read_pattern(lab, "heir") == PATTERN


def test_a_guest_that_crashes_is_gone_if_it_is_not_told_otherwise(lab):
    lab.create("crashes")
    end_by(lab, "crashes", PANIC)
    wait_until(lambda: is_gone(lab, "crashes"), "the crashed guest is gone")
    assert reason(lab, "crashes") == "crash"


def test_a_guest_whose_operating_system_is_killed_has_crashed(lab):
    lab.create("headless", on_crash=Action.PRESERVE)
    lab.run_in("headless", "true")
    (system,) = [child for child in children_of(lab.client.info("headless").pid) if child.program == "linux.uml"]
    os.kill(system.pid, signal.SIGKILL)
    wait_until(lambda: lab.client.info("headless").state is DomainState.CRASHED, "the guest has crashed")
    assert reason(lab, "headless") == "crash"


def test_a_guest_that_crashes_is_restarted_with_its_disk_if_told_so(lab, images):
    lab.create("returns", images("returns", 8), on_crash=Action.RESTART)
    write_pattern(lab, "returns")
    for generation in (2, 3):
        end_by(lab, "returns", PANIC)
        wait_generation(lab, "returns", generation)
        assert read_pattern(lab, "returns") == PATTERN
    assert lab.client.info("returns").restarts == 2


def test_a_guest_that_crashes_is_kept_for_a_look_if_told_so(lab):
    lab.create("kept", on_crash=Action.PRESERVE)
    end_by(lab, "kept", PANIC)
    wait_until(lambda: lab.client.info("kept").state is DomainState.CRASHED, "the guest has crashed")
    assert b"Kernel panic" in lab.client.dmesg("kept")
    with pytest.raises(TvError, match="tv destroy kept") as refusal:
        lab.client.exec("kept", ["true"])
    assert refusal.value.status is Status.EHOSTDOWN
    lab.client.destroy("kept")
    assert is_gone(lab, "kept")


def test_a_guest_that_crashes_again_and_again_is_given_up(tmp_path):
    with start_lab(tmp_path, guests="restart = { free_deaths = 3, max_deaths = 3, window_s = 600 }") as lab:
        lab.create("hopeless", extra="rdinit=/no/such/file", on_crash=Action.RESTART)
        wait_until(lambda: lab.client.info("hopeless").state is DomainState.GIVEN_UP, "the guest is given up")
        assert len(lab.log.all("guest.ended", name="hopeless", reason="crash")) == 3
        assert lab.log.all("guest.given_up", name="hopeless", deaths=3)
        lab.destroy_all()


@pytest.mark.parametrize(
    ("script", "reason_told", "state", "words"),
    [
        (PANIC, "crash", DomainState.CRASHED, "Kernel panic - not syncing: sysrq triggered crash"),
        ("halt -f", "poweroff", DomainState.SHUTDOWN, "reboot: System halted"),
        ("poweroff -f", "poweroff", DomainState.SHUTDOWN, "reboot: System halted"),
        ("reboot -f", "reboot", DomainState.SHUTDOWN, "reboot: Restarting system"),
    ],
    ids=["panic", "halt", "poweroff", "reboot"],
)
def test_each_end_of_a_guest_has_its_own_state_and_log(lab, script, reason_told, state, words):
    lab.create("ends", on_poweroff=Action.PRESERVE, on_reboot=Action.PRESERVE, on_crash=Action.PRESERVE)
    end_by(lab, "ends", script)
    info = lab.client.info("ends")
    assert (info.state, info.last_end) == (state, words)
    ended = lab.log.all("guest.ended", name="ends")[-1]
    assert (ended["reason"], ended["how"]) == (reason_told, words)
    assert state_slots(state) == ("----c-" if reason_told == "crash" else "---s--")


def test_an_end_by_a_kill_is_a_crash_that_says_so(lab):
    lab.create("killed", on_crash=Action.PRESERVE)
    lab.run_in("killed", "true")
    (system,) = [child for child in children_of(lab.client.info("killed").pid) if child.program == "linux.uml"]
    os.kill(system.pid, signal.SIGKILL)
    wait_until(lambda: lab.client.info("killed").state is DomainState.CRASHED, "the guest has crashed")
    assert lab.client.info("killed").last_end == "killed by signal 9"


def test_a_guest_that_crashes_is_kept_beside_its_successor_if_told_so(lab, images):
    lab.create("twice", images("twice", 8), on_crash=Action.RENAME_RESTART)
    write_pattern(lab, "twice")
    domid = lab.client.info("twice").domid
    end_by(lab, "twice", PANIC)
    wait_until(lambda: not is_gone(lab, "twice-1") and not is_gone(lab, "twice"), "both are there")
    wait_generation(lab, "twice", 1)
    dead, heir = lab.client.info("twice-1"), lab.client.info("twice")
    assert (dead.domid, dead.state, dead.vbds) == (domid, DomainState.CRASHED, [])
    assert heir.domid > domid
    assert heir.restarts == 1
    assert read_pattern(lab, "twice") == PATTERN
    assert b"Kernel panic" in lab.client.dmesg("twice-1")
    assert b"Kernel panic" not in lab.client.dmesg("twice")
    lab.note_vbds()
    with verified_load(lab.client, "twice"):
        lab.watch.kill()


def core_of(lab: Lab, guest: str, generation: int) -> bytes:
    """The one core of that incarnation."""
    (core,) = (lab.run / "core").glob(f"{guest}.{generation}.*.core")
    return core.read_bytes()


def loaded(core: bytes) -> list[tuple[int, int, int]]:
    """Offset, address and size of what a debugger is told to load (elf(5))."""
    at, size, count = struct.unpack_from("<Q", core, 32)[0], *struct.unpack_from("<HH", core, 54)
    found = [struct.unpack_from("<IIQQQQ", core, at + number * size) for number in range(count)]
    return [(offset, address, length) for kind, _, offset, address, _, length in found if kind == 1]


MARK = "echo ma$((6 * 7))rk > /tmp/mark"
MARKED = b"ma42rk\n"


def test_a_guest_that_crashes_leaves_a_core_of_its_memory_if_told_so(lab):
    lab.create("cored", on_crash=Action.COREDUMP_RESTART)
    lab.run_in("cored", "sh", "-c", MARK)
    end_by(lab, "cored", PANIC)
    wait_generation(lab, "cored", 2)
    core = core_of(lab, "cored", 1)
    (offset, _address, length), *_ = loaded(core)
    assert MARKED in core[offset : offset + length]
    assert lab.log.all("guest.core_dumped", name="cored")
    lab.client.destroy("cored")
    assert not list((lab.run / "core").glob("*.part"))


def test_a_guest_that_is_to_leave_a_core_of_a_crash_leaves_none_of_a_power_off(lab):
    lab.create("quiet", on_crash=Action.COREDUMP_DESTROY)
    lab.client.shutdown("quiet", wait_s=20)
    assert is_gone(lab, "quiet")
    assert not list((lab.run / "core").glob("quiet.*"))
    assert not lab.log.all("guest.core_failed", name="quiet")


def test_a_core_of_a_living_guest_has_its_kernel_too_and_the_guest_goes_on(lab, images):
    lab.create("alive", images("alive", 8))
    lab.run_in("alive", "sh", "-c", MARK)
    with verified_load(lab.client, "alive"):
        made = lab.client.dump_core("alive")
    core = Path(made.path).read_bytes()
    assert len(core) == made.bytes
    (offset, address, length), *_ = loaded(core)
    memory = core[offset : offset + length]
    assert length == 64 << 20
    assert MARKED in memory
    assert b"Linux version " + lab.run_in("alive", "uname", "-r").strip() in memory
    assert address == 0x60000000
    for _ in range(5):
        lab.client.dump_core("alive")
    assert len(list((lab.run / "core").glob("alive.*.core"))) == 4, "the oldest are removed"


def test_a_guest_whose_devices_process_dies_while_a_core_is_to_be_left_still_leaves_it(lab):
    lab.create("again", on_crash=Action.COREDUMP_RESTART)
    lab.run_in("again", "sh", "-c", MARK)
    (actor,) = [child for child in children_of(lab.client.info("again").pid) if child.program != "linux.uml"]
    os.kill(actor.pid, signal.SIGKILL)
    wait_until(lambda: lab.log.all("domain.soft_reset", name="again"), "its successor goes on")
    lab.run_in("again", "true")
    end_by(lab, "again", PANIC)
    wait_generation(lab, "again", 2)
    assert MARKED in core_of(lab, "again", 1)


@pytest.mark.parametrize("action", [Action.RENAME_RESTART, Action.COREDUMP_RESTART])
def test_no_way_to_restart_is_a_loop(tmp_path, action):
    with start_lab(tmp_path, guests="restart = { free_deaths = 3, max_deaths = 3, window_s = 600 }") as lab:
        lab.create("hopeless", extra="rdinit=/no/such/file", on_crash=action)
        wait_until(lambda: lab.log.all("guest.given_up", name="hopeless", deaths=3), "the guest is given up")
        assert lab.client.info("hopeless").state is DomainState.GIVEN_UP
        kept = [domain.name for domain in lab.client.list() if domain.name.startswith("hopeless-")]
        assert len(kept) == (2 if action is Action.RENAME_RESTART else 0)
        lab.destroy_all()


def test_nothing_that_a_guest_writes_can_outgrow_its_memory(lab):
    """Its actor holds a file of the host's, for a core."""
    lab.create("bound", memory=48, on_crash=Action.COREDUMP_DESTROY)
    for process in children_of(lab.client.info("bound").pid):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max file size")]
        assert line.split()[3] == str((48 + 64) << 20)
