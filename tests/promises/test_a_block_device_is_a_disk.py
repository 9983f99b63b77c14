"""A block device of the host's as a guest's disk: as safe as an image file, and refused by name where it is in use."""

import os
import subprocess

import pytest

from kernel.abi.status import Status
from kernel.images import open_image
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load
from tests.promises.small_disks import loop_device, mounted
from triovisor.client import TvError

MIB = 1 << 20
SIZE = 16 * MIB
BLOCK = 4096


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param) as started:
        yield started


@pytest.fixture
def backing(tmp_path):
    path = tmp_path / "backing"
    path.write_bytes(b"\xff" * SIZE)
    return path


@pytest.fixture(params=[512, 4096], ids=["512", "4Kn"])
def device(request, backing):
    with loop_device(backing, "--sector-size", str(request.param)) as loop:
        yield loop


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def read(lab: Lab, block: int) -> bytes:
    return lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=1", f"skip={block}", "iflag=direct")


def test_it_has_its_devices_size_and_outlives_its_driver_under_verified_load(lab, device, backing):
    lab.create("g", device)
    assert int(lab.run_in("g", "cat", "/sys/block/vda/size")) == SIZE // 512
    with verified_load(lab.client, "g"):
        for _ in range(5):
            lab.watch.kill()


def test_what_a_guest_has_flushed_is_on_the_device(lab, device, backing):
    lab.create("g", device)
    lab.run_in("g", "dd", "if=/dev/zero", "of=/dev/vda", "bs=512", "count=3", "seek=9", "conv=notrunc,fsync")
    assert backing.read_bytes() == b"\xff" * 4608 + bytes(1536) + b"\xff" * (SIZE - 6144)


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "in the page cache"])
def test_discard_and_zeros_reach_it_and_stay_when_the_driver_dies(lab, device, backing, clean):
    lab.create("g", device)
    ones = ["dd", "if=/dev/vda", "of=/dev/vda", "bs=1M", "count=16", "conv=notrunc"]
    lab.run_in("g", *ones, *(["oflag=direct"] if clean else []))
    if clean:
        lab.run_in("g", "sync")
        lab.run_in("g", "dd", "if=/dev/zero", "of=/dev/vda", "count=0", "conv=notrunc,fsync")
    before = backing.stat().st_blocks
    lab.run_in("g", "blkdiscard", "-o", "0", "-l", str(MIB), "/dev/vda")
    lab.run_in("g", "zero", "/dev/vda", str(MIB), str(MIB), "unmap")
    lab.run_in("g", "zero", "/dev/vda", str(2 * MIB), str(MIB))
    lab.run_in("g", "zero", "/dev/vda", str(4 * MIB - 512), "1024")
    lab.watch.kill()
    if clean:
        assert before - backing.stat().st_blocks >= 2 * MIB // 512
        assert read(lab, 0) == bytes(BLOCK)
    for block in range(256, 768, 17):
        assert read(lab, block) == bytes(BLOCK)
    lab.client.destroy("g")
    os.sync()
    after = backing.read_bytes()
    assert after[MIB : 3 * MIB] == bytes(2 * MIB)
    assert after[3 * MIB :] == b"\xff" * (MIB - 512) + bytes(1024) + b"\xff" * (SIZE - 4 * MIB - 512)


def test_a_device_that_a_guest_writes_can_neither_be_mounted_nor_given_to_another(lab, backing, tmp_path):
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", backing], check=True)
    with loop_device(backing) as device:
        lab.create("g", device)
        folder = tmp_path / "mounted"
        folder.mkdir()
        done = subprocess.run(["mount", device, folder], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        with pytest.raises(TvError, match="is in use by another") as refusal:
            lab.create("h", device)
        assert refusal.value.status is Status.EBUSY
        assert str(device) in refusal.value.why
        qemu = ["qemu-io", "-f", "raw", str(device)]
        refused = subprocess.run(qemu, input="", capture_output=True, text=True, check=False)
        assert "lock" in refused.stderr
        lab.client.destroy("g")
        lab.create("h", device)


@pytest.mark.parametrize("read_only", [False, True], ids=["rw", "ro"])
def test_a_mounted_device_is_refused_with_where_it_is_mounted(lab, backing, tmp_path, read_only):
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", backing], check=True)
    with loop_device(backing) as device:
        with mounted(device, tmp_path / "here") as folder, pytest.raises(TvError) as refusal:
            lab.create("g", device, read_only=read_only)
        assert refusal.value.status is Status.EBUSY
        assert f"{device} is a block device that is mounted at {folder}: unmount it" in refusal.value.why
        assert [domain.name for domain in lab.client.list()] == ["dom0", "blkback"]
        lab.create("g", device, read_only=read_only)


def test_a_device_that_another_claimed_is_refused(lab, backing):
    with loop_device(backing) as device:
        other = os.open(device, os.O_RDONLY | os.O_EXCL)
        with pytest.raises(TvError, match="is in use by another: unmount it or end what uses it"):
            lab.create("g", device)
        os.close(other)
        open_image(device, read_only=False).close()


def test_two_guests_may_read_one_device_that_cannot_be_written(lab, backing):
    with loop_device(backing, "--read-only") as device:
        with pytest.raises(TvError, match='can only be read: give access = "ro"'):
            lab.create("g", device)
        for name in ("g", "h"):
            lab.create(name, device, read_only=True)
            assert lab.run_in(name, "dd", "if=/dev/vda", "bs=4k", "count=1") == b"\xff" * BLOCK
        lab.watch.kill()
        assert read(lab, 100) == b"\xff" * BLOCK
        lab.destroy_all()


def test_a_device_without_a_sector_is_refused(lab, tmp_path):
    (tmp_path / "empty").touch()
    with loop_device(tmp_path / "empty") as device, pytest.raises(TvError) as refusal:
        lab.create("g", device)
    assert f"image {device} has 0 bytes: a disk needs at least one sector" in refusal.value.why
