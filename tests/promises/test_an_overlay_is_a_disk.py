"""A copy-on-write overlay in qcow2 as a disk: what it stands on stays as it is, and its driver may die as any."""

import fcntl
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

from kernel.abi.guest_config import Action, DiskConfig, GuestConfig
from kernel.abi.status import Status
from tests.promises.actors import kill_actor, own_load, wait_actor_serves
from tests.promises.events import wait_until
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load
from tests.promises.processes import descendants_of, links_of, status_of
from tests.promises.small_disks import freezable_disk
from triovisor import overlays
from triovisor.client import TvError
from triovisor.overlays import ImageError

MIB = 1 << 20
KILLS, SEED = 60, 4
SERVES_S = 0.1
"""At most, after its rings are mapped: to start a storage daemon takes 10 to 20 ms of it, so kills meet that too."""
DRIVER = "qcowback"
POINTS = ("request", "io", "reply")
FROZEN_S = 12.0
"""Longer than a daemon may be silent."""
SETTINGS: dict[str, Any] = {
    "name": DRIVER,
    "role": "drivers.blkback.qcow2",
    "image_format": "qcow2",
    "program": "/usr/bin/qemu-storage-daemon",
}


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param, **SETTINGS) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def qemu_img_when_free(*words: object) -> subprocess.CompletedProcess[str]:
    """A driver lets go of the image of a guest that is gone within milliseconds; until then QEMU does not open it."""

    def tried() -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
        return None if "Failed to get" in done.stderr and "lock" in done.stderr else done

    done: subprocess.CompletedProcess[str] = wait_until(tried, "the image is let go of")
    return done


def qemu_img(*words: object) -> str:
    done = qemu_img_when_free(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def overlay(base: Path, *size: str) -> Path:
    image = base.with_suffix(".qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image, *size)
    return image


def create(lab: Lab, image: Path, backing: Path | None, *, name: str = "g", access: Literal["rw", "ro"] = "rw") -> None:
    disk = DiskConfig(
        target=str(image),
        vdev="vda",
        access=access,
        backend=DRIVER,
        format="qcow2",
        backing=None if backing is None else str(backing),
    )
    lab.client.create(GuestConfig(name=name, memory=96, disk=[disk], on_reboot=Action.RESTART))
    lab.note_vbds()


def random_base(folder: Path, size: int = 4 * MIB) -> Path:
    base = folder / "base"
    base.write_bytes(os.urandom(size))
    return base


def write(lab: Lab, sector: int, data: bytes) -> None:
    """Past the guest's cache, in sectors."""
    words = ["dd", "of=/dev/vda", "bs=512", f"seek={sector}", "oflag=direct", "conv=notrunc", "iflag=fullblock"]
    lab.run_in("g", *words, stdin=data)


def read(lab: Lab, sector: int, count: int, *, name: str = "g") -> bytes:
    return lab.run_in(name, "dd", "if=/dev/vda", "bs=512", f"skip={sector}", f"count={count}", "iflag=direct")


def daemon_of(lab: Lab) -> int:
    """The storage daemon of the one disk that is served."""
    serving = lab.watch.pid_of(lab.watch.wait_serving())
    pid: int = wait_until(lambda: next((each.pid for each in descendants_of(serving)), 0), "a storage daemon")
    return pid


def damage(image: Path) -> int:
    """Errors in an image. What a kill leaves allocated and unused is none: it costs space alone, until a repair."""
    told = orjson.loads(qemu_img_when_free("check", "--output=json", "-f", "qcow2", image).stdout)
    return int(told.get("corruptions", 0)) + int(told["check-errors"])


def content(image: Path) -> bytes:
    """The disk that it makes, as QEMU reads it when nobody else does."""
    raw = image.with_suffix(".content")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def test_kills_of_the_serving_driver_under_load_lose_nothing_and_leave_the_image_whole(lab, tmp_path):
    base = tmp_path / "base"
    base.write_bytes(os.urandom(32 * MIB))
    image = overlay(base)
    create(lab, image, base)
    before = base.read_bytes()
    instants = random.Random(SEED)
    with verified_load(lab.client, "g", depth=32, span="16m") as load:
        deaths = []
        for _ in range(KILLS):
            time.sleep(instants.uniform(0, SERVES_S))
            deaths.append(lab.watch.kill())
    assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
    assert load.report is not None
    assert load.report.operations > KILLS
    lab.client.destroy("g")
    assert base.read_bytes() == before
    assert damage(image) == 0
    assert content(image)[16 * MIB :] == before[16 * MIB :]


def test_sectors_at_odd_places_are_right_also_where_the_base_ends(lab, tmp_path):
    base = random_base(tmp_path, 70000)
    image = overlay(base, "1M")
    create(lab, image, base)
    model = bytearray(base.read_bytes().ljust(MIB, b"\0"))
    assert read(lab, 130, 12) == model[130 * 512 : 142 * 512]
    for sector, count in ((1, 1), (127, 3), (135, 5), (2000, 48), (137, 1), (0, 1)):
        data = os.urandom(count * 512)
        model[sector * 512 : (sector + count) * 512] = data
        write(lab, sector, data)
        lab.watch.kill()
        assert read(lab, 0, 256) == model[: 256 * 512]
    lab.client.destroy("g")
    assert content(image) == model
    assert len(base.read_bytes()) == 70000


def test_what_a_guest_has_flushed_is_in_the_file_when_all_is_gone(lab, tmp_path):
    base = random_base(tmp_path)
    image = overlay(base)
    create(lab, image, base)
    data = os.urandom(MIB)
    lab.run_in("g", "dd", "of=/dev/vda", "bs=64k", "seek=3", "conv=notrunc,fsync", "iflag=fullblock", stdin=data)
    lab.client.destroy("g")
    assert content(image)[3 * 65536 : 3 * 65536 + MIB] == data


def test_zeros_and_discards_reach_the_image_and_stay_when_the_driver_dies(lab, tmp_path):
    base = random_base(tmp_path)
    image = overlay(base)
    create(lab, image, base)
    lab.run_in("g", "zero", "/dev/vda", str(MIB - 512), "1024")
    lab.run_in("g", "zero", "/dev/vda", str(2 * MIB), str(MIB), "unmap")
    lab.run_in("g", "blkdiscard", "-o", "0", "-l", "65536", "/dev/vda")
    lab.watch.kill()
    model = bytearray(base.read_bytes())
    model[MIB - 512 : MIB + 512] = bytes(1024)
    model[2 * MIB : 3 * MIB] = bytes(MIB)
    assert read(lab, 128, 8192 - 128) == model[65536:]


def test_two_guests_stand_on_one_base_and_nobody_may_write_it(lab, tmp_path):
    base = random_base(tmp_path)
    images = []
    for name in ("g", "h"):
        images.append(overlay(base).rename(tmp_path / f"{name}.qcow2"))
        create(lab, images[-1], base, name=name)
    write(lab, 9, b"g" * 512)
    assert read(lab, 9, 1, name="h") == base.read_bytes()[9 * 512 : 10 * 512]
    for image in (base, images[0]):
        command = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(image)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "lock" in refused.stderr
    with pytest.raises(TvError, match="is in use by another"):
        create(lab, images[0], base, name="i")


def test_a_reboot_and_a_new_guest_find_what_was_written(lab, tmp_path):
    base = random_base(tmp_path)
    image = overlay(base)
    create(lab, image, base)
    write(lab, 77, b"r" * 1024)
    lab.client.shutdown("g", reboot=True, wait_s=60)
    assert read(lab, 77, 2) == b"r" * 1024
    lab.client.destroy("g")
    create(lab, image, base, access="ro")
    assert read(lab, 77, 2) == b"r" * 1024
    assert lab.client.exec("g", ["dd", "if=/dev/zero", "of=/dev/vda", "count=1"]).status != 0
    lab.watch.kill()
    assert read(lab, 77, 2) == b"r" * 1024


def test_an_image_that_stands_on_nothing_is_a_disk_too(lab, tmp_path):
    image = tmp_path / "alone"
    qemu_img("create", "-q", "-f", "qcow2", image, "60T")
    create(lab, image, None)
    assert int(lab.run_in("g", "cat", "/sys/block/vda/size")) == 60 << 31
    write(lab, (60 << 31) - 1, b"e" * 512)
    lab.watch.kill()
    assert read(lab, (60 << 31) - 1, 1) == b"e" * 512
    assert image.stat().st_blocks * 512 < 4 * MIB


def test_a_storage_daemon_that_dies_or_is_silent_is_replaced_with_its_driver(lab, tmp_path):
    base = random_base(tmp_path)
    create(lab, overlay(base), base)
    with verified_load(lab.client, "g"):
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP):
            before = lab.watch.wait_serving()
            os.kill(daemon_of(lab), number)
            lab.watch.wait_serving(other_than=before)
            assert lab.watch.wait_death(before)["how"] == "exit status 70"
            assert lab.log_of(before, DRIVER).all("daemon.failed")


@pytest.mark.parametrize(
    "act", ["hang", "exit", "oom", "corrupt-ring", "stray-reply", *(f"crash@{point}" for point in POINTS)]
)
def test_every_way_in_which_its_driver_may_fail_ends_in_recovery(lab, tmp_path, act):
    base = random_base(tmp_path)
    create(lab, overlay(base), base)
    with verified_load(lab.client, "g"):
        lab.watch.strike(lambda _pid: lab.client.inject(DRIVER, act))
        lab.watch.kill()


def test_a_file_system_that_takes_long_is_waited_for(lab, tmp_path):
    """A daemon that waits for us is not silent."""
    base = random_base(tmp_path)
    with freezable_disk(tmp_path, 8) as disk:
        image = disk.folder / "image.qcow2"
        overlay(base).rename(tmp_path / "made")
        image.write_bytes((tmp_path / "made").read_bytes())
        create(lab, image, base)
        serving = lab.watch.wait_serving()
        with verified_load(lab.client, "g"):
            with disk.frozen():
                time.sleep(FROZEN_S)
            assert lab.watch.wait_serving() == serving
        lab.destroy_all()


def test_a_storage_daemon_has_neither_a_file_nor_a_path_nor_a_network(lab, tmp_path):
    base = random_base(tmp_path)
    image = overlay(base)
    create(lab, image, base)
    read(lab, 0, 1)
    pid = daemon_of(lab)
    kinds = {link.split(":")[0].removeprefix("/memfd") for link in links_of(pid, "fd").values()}
    assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null"}
    serving = lab.watch.pid_of(lab.watch.active)
    for namespace in ("pid", "mnt", "net", "ipc", "user"):
        assert links_of(pid, "ns")[namespace] == links_of(serving, "ns")[namespace]
    status = status_of(pid)
    assert (status["Seccomp"], status["NoNewPrivs"], status["CapEff"]) == ("2", "1", "0" * 16)
    for path in (image, base, lab.run, "/etc/passwd", "/root/.ssh", "/home", "/var"):
        assert not Path(f"/proc/{pid}/root/{path}").exists()


def test_when_its_driver_is_gone_no_storage_daemon_is_left(lab, tmp_path):
    base = random_base(tmp_path)
    create(lab, overlay(base), base)
    read(lab, 0, 1)
    daemons = [daemon_of(lab)]
    lab.watch.kill()
    assert not Path(f"/proc/{daemons[0]}").exists()
    daemons.append(daemon_of(lab))
    lab.client.destroy("g")
    wait_until(lambda: not Path(f"/proc/{daemons[1]}").exists(), "the daemon of a disk that is gone is gone")


def test_a_guests_actor_may_die_while_its_disk_is_an_overlay(lab, tmp_path):
    base = random_base(tmp_path)
    image = overlay(base)
    create(lab, image, base)
    with own_load(lab, "g"):
        for _ in range(5):
            wait_actor_serves(lab, "g", kill_actor(lab, "g"))
            lab.watch.kill()
    lab.client.destroy("g")
    assert damage(image) == 0


def header_says(image: Path, offset: int, value: bytes) -> Path:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    return image


def stranger(kind: str, base: Path) -> tuple[Path, Path | None]:
    """An image that is not to be served, and what the configuration says that it stands on."""
    image = overlay(base)
    other = base.with_name("other")
    other.write_bytes(bytes(MIB))
    match kind:
        case "names a file that nobody gave":
            qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", image)
            return image, None
        case "names another than was given":
            return image, other
        case "names none, and one was given":
            qemu_img("create", "-q", "-f", "qcow2", image, "1M")
            return image, base
        case "names a server":
            qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://localhost/x", image)
        case "keeps its data elsewhere":
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={other}", image, "1M")
            return image, None
        case "is marked corrupt":
            header_says(image, 79, b"\2")
        case "is dirty":
            header_says(image, 79, b"\1")
        case "is of the future":
            header_says(image, 72, b"\x80")
        case "is garbage":
            image.write_bytes(b"QFI\xfb" + os.urandom(4096))
        case "is cut":
            image.write_bytes(image.read_bytes()[:80])
        case "is raw":
            image.write_bytes(os.urandom(MIB))
        case "has an L1 table without end":
            header_says(image, 36, b"\x7f\xff\xff\xff")
        case "has clusters of no size":
            header_says(image, 20, b"\0\0\0\x3f")
        case "is a disk of no size":
            header_says(image, 24, bytes(8))
        case "stands on what is not there":
            base.unlink()
    return image, base


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("names a file that nobody gave", 'add backing = "/etc/passwd" to the disk if its guest may read that'),
        ("names another than was given", "not on "),
        ("names none, and one was given", "stands on no other: leave out backing"),
        ("names a server", "stands on 'nbd://localhost/x', not on"),
        ("keeps its data elsewhere", "Could not open"),
        ("is marked corrupt", "it is marked as corrupt: tv image check"),
        ("is dirty", "it was not closed in order: tv image check"),
        ("is of the future", "Unsupported qcow2 feature"),
        ("is garbage", "Unsupported qcow2 version"),
        ("is cut", ""),
        ("is raw", "Image is not in qcow2 format"),
        ("has an L1 table without end", "Active L1 table too large"),
        ("has clusters of no size", "Unsupported cluster size"),
        ("is a disk of no size", "is a disk of 0 bytes"),
        ("stands on what is not there", "does not exist"),
    ],
)
def test_an_image_that_cannot_be_served_is_refused_in_one_line_and_nothing_is_left(lab, tmp_path, kind, why):
    base = random_base(tmp_path, MIB)
    image, backing = stranger(kind, base)
    before = lab.watch.wait_serving()
    with pytest.raises(TvError) as refused:
        create(lab, image, backing)
    assert refused.value.status in (Status.EINVAL, Status.ENOENT)
    assert why in refused.value.why
    assert "\n" not in refused.value.why
    assert str(tmp_path) in refused.value.why
    assert [domain.name for domain in lab.client.list()] == ["dom0", DRIVER]
    assert lab.watch.wait_serving() == before, "the driver is none the worse"
    assert not [each for each in descendants_of(lab.watch.pid_of(before))], "no storage daemon is left"
    image.open("r+b").close()
    fcntl.lockf((held := image.open("r+b")).fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.close()


def test_a_disk_and_a_driver_of_another_format_do_not_fit(lab, tmp_path):
    base = random_base(tmp_path, MIB)
    for backing, why in (
        (None, f"{DRIVER} serves qcow2 and not raw: have one in the boot manifest"),
        (str(base), "a raw image stands on no other"),
    ):
        disk = DiskConfig(target=str(base), vdev="vda", backend=DRIVER, backing=backing)
        with pytest.raises(TvError, match=why):
            lab.client.create(GuestConfig(name="g", disk=[disk]))


def test_a_guests_disk_is_not_committed_nor_checked_beneath_it(lab, tmp_path):
    base = random_base(tmp_path, MIB)
    image = overlay(base)
    create(lab, image, base)
    write(lab, 5, b"c" * 512)
    for act in (lambda: overlays.commit(image, base), lambda: overlays.check(image)):
        with pytest.raises(ImageError, match="is in use: shut down the guest"):
            act()
    assert overlays.info(image).backing == str(base)
    lab.client.destroy("g")
    overlays.check(image, repair=True)
    overlays.commit(image, base)
    assert base.read_bytes()[5 * 512 : 6 * 512] == b"c" * 512
