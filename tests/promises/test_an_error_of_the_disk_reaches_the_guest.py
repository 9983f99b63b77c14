"""What the disk beneath an image says is told to the guest: that it is full at once, a late error at the flush."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises.lab import start_lab
from tests.promises.load import verified_load
from tests.promises.small_disks import fill, full_loop_device, tmpfs
from triovisor.command import ExecResult

WRITE = ["dd", "if=/dev/urandom", "of=/dev/vda", "bs=64k", "count=4", "seek=8", "oflag=direct"]
FLUSH = ["dd", "if=/dev/zero", "of=/dev/vda", "count=0", "conv=notrunc,fsync"]


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param) as started:
        yield started


@contextlib.contextmanager
def guests(lab, **disks: Path) -> Iterator[None]:
    """A guest of each name on its image, gone before what lies beneath the images goes."""
    try:
        for name, image in disks.items():
            lab.create(name, image)
        yield
    finally:
        lab.destroy_all()


def is_refused(result: ExecResult) -> bool:
    """Whether a command in the guest met an I/O error."""
    return result.status != 0 and b"Input/output error" in result.stderr


def see_error_of_write_back(witness: int) -> None:
    """Have the host write back what is in its page cache. It fails, and the error is told to this witness."""
    with pytest.raises(OSError, match=r"Input/output error|No space left"):
        os.fsync(witness)


@pytest.mark.parametrize("deaths", [0, 1, 4])
def test_an_error_of_write_back_reaches_the_guests_flush_though_the_driver_died_in_between(lab, tmp_path, deaths):
    with full_loop_device(tmp_path, image_mib=8) as image, image.open("rb") as witness, guests(lab, g=image):
        assert lab.client.exec("g", WRITE).status == 0, "the write itself goes into the page cache"
        see_error_of_write_back(witness.fileno())
        for _ in range(deaths):
            lab.watch.kill()
        assert is_refused(lab.client.exec("g", FLUSH)), "the guest was told that its data is on the disk"


def test_a_full_disk_is_an_error_of_that_request_and_nobodys_death(lab, tmp_path, images):
    with tmpfs(tmp_path / "small", 16) as small:
        image = small / "image"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        with guests(lab, g=image, other=images("other", 8)):
            before = lab.watch.wait_serving()
            ballast = fill(small)
            with verified_load(lab.client, "other"):
                for _ in range(3):
                    assert is_refused(lab.client.exec("g", WRITE))
            ballast.unlink()
            assert lab.client.exec("g", WRITE).status == 0
            assert lab.watch.wait_serving() == before, "the driver is the same incarnation"
