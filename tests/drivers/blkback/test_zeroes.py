"""Ranges of an image given back or made zeros, on file systems that can do much, little and nothing of it."""

import errno
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from drivers.blkback.zeroes import discard, write_zeroes
from tests.not_possible import not_possible

KIB = 1024
SIZE = 4096 * KIB
HOLES, ALLOCATED = True, False


@pytest.fixture(params=["ext4", "tmpfs", "ramfs"])
def folder(request, tmp_path):
    """ext4 has holes and zero ranges, tmpfs has holes, ramfs has neither."""
    if request.param == "ext4":
        yield tmp_path
    elif request.param == "tmpfs":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
            yield Path(path)
    else:
        if os.geteuid():
            not_possible("mounting a ramfs needs root")
        if subprocess.run(["mount", "-t", "ramfs", "none", tmp_path], check=False).returncode:
            not_possible("mounting a ramfs")
        yield tmp_path
        subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def image(folder):
    (folder / "image").write_bytes(b"x" * SIZE)
    descriptor = os.open(folder / "image", os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def content(image: int) -> bytes:
    return os.pread(image, SIZE + 1, 0)


@pytest.mark.parametrize("unmap", [HOLES, ALLOCATED])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, SIZE), (4096, 8192), (512, 512), (SIZE - 512, 512), (1536, 3 << 20)]
)
def test_a_range_reads_as_zeros_and_nothing_else_does(image, offset, length, unmap):
    write_zeroes(image, offset, length, unmap=unmap)
    assert content(image) == b"x" * offset + bytes(length) + b"x" * (SIZE - offset - length)


@pytest.mark.parametrize("folder", ["ext4", "tmpfs"], indirect=True)
def test_zeros_that_stay_allocated_cost_their_space_and_holes_do_not(image):
    def has() -> int:
        os.fsync(image)
        return os.fstat(image).st_blocks * 512

    write_zeroes(image, 0, SIZE, unmap=ALLOCATED)
    assert has() >= SIZE
    write_zeroes(image, 0, SIZE, unmap=HOLES)
    assert has() < SIZE // 64, "but for what the file system keeps for itself"


def test_a_range_of_nothing_changes_nothing(image):
    write_zeroes(image, 0, 0, unmap=HOLES)
    discard(image, 0, 0)
    assert content(image) == b"x" * SIZE


@pytest.mark.parametrize("folder", ["ext4", "tmpfs"], indirect=True)
def test_a_discard_is_a_hole(image):
    discard(image, 4096, 8192)
    assert content(image)[4096:12288] == bytes(8192)


@pytest.mark.parametrize("folder", ["ramfs"], indirect=True)
def test_a_discard_that_cannot_be_says_so(image):
    with pytest.raises(OSError, match="fallocate") as caught:
        discard(image, 4096, 8192)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert content(image) == b"x" * SIZE


def test_what_cannot_be_written_is_an_error(folder):
    (folder / "read-only").write_bytes(b"x" * 4096)
    descriptor = os.open(folder / "read-only", os.O_RDONLY)
    with pytest.raises(OSError, match=r"."):
        write_zeroes(descriptor, 0, 4096, unmap=ALLOCATED)
    os.close(descriptor)
    assert (folder / "read-only").read_bytes() == b"x" * 4096
