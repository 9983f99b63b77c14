"""Images: what is refused and how it is said, and locks that QEMU respects."""

import os
import subprocess

import pytest

from kernel.abi.status import Refused, Status
from kernel.images import open_image


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def refusal(path, *, read_only=False):
    with pytest.raises(Refused) as caught:
        open_image(path, read_only=read_only)
    assert "\n" not in caught.value.why
    assert str(path) in caught.value.why
    return caught.value


def test_a_missing_image_is_refused_with_the_mend(tmp_path):
    refused = refusal(tmp_path / "nope.img")
    assert refused.status is Status.ENOENT
    assert "qemu-img create" in refused.why


def test_an_image_smaller_than_a_sector_is_no_disk(tmp_path):
    (tmp_path / "tiny.img").write_bytes(bytes(511))
    refused = refusal(tmp_path / "tiny.img")
    assert refused.status is Status.EINVAL
    assert "511 bytes" in refused.why


def test_a_folder_a_fifo_and_a_character_device_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", type(tmp_path)("/dev/zero")):
        refused = refusal(path)
        assert refused.status is Status.EINVAL
        assert "or a block device" in refused.why


def test_a_writer_shuts_everybody_else_out(image):
    ours = open_image(image, read_only=False)
    assert refusal(image).status is Status.EBUSY
    assert refusal(image, read_only=True).status is Status.EBUSY
    ours.close()
    open_image(image, read_only=False).close()


def test_readers_share_and_shut_writers_out(image):
    readers = [open_image(image, read_only=True), open_image(image, read_only=True)]
    assert refusal(image).status is Status.EBUSY
    for reader in readers:
        reader.close()


def test_what_an_incarnation_still_holds_keeps_the_image_locked(image):
    ours = open_image(image, read_only=False)
    taken = ours.take()
    ours.close()
    assert refusal(image).status is Status.EBUSY
    os.close(taken)
    open_image(image, read_only=False).close()


def test_qemu_and_we_respect_each_other(image):
    read = ["qemu-io", "-f", "raw", "-c", "read 0 512", str(image)]
    ours = open_image(image, read_only=False)
    refused = subprocess.run(read, capture_output=True, text=True, check=False)
    assert 'Failed to get "write" lock' in refused.stderr
    ours.close()
    assert subprocess.run(read, capture_output=True, check=False).returncode == 0
    holder = subprocess.Popen(["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin
    assert holder.stdout
    holder.stdin.write(b"read 0 512\n")
    holder.stdin.flush()
    holder.stdout.readline()
    assert refusal(image).status is Status.EBUSY
    holder.communicate(b"quit\n")


def test_each_descriptor_has_an_open_file_description_of_its_own(image):
    ours = open_image(image, read_only=False)
    first, second = ours.take(), ours.take()
    os.lseek(first, 100, os.SEEK_SET)
    assert os.lseek(second, 0, os.SEEK_CUR) == 0
    for descriptor in (first, second):
        os.close(descriptor)
    ours.close()


def test_a_file_put_in_the_images_place_is_not_what_the_successor_gets(image):
    ours = open_image(image, read_only=False)
    first = ours.take()
    image.rename(image.with_suffix(".old"))
    image.write_bytes(b"x" * 8192)
    second = ours.take()
    assert os.fstat(first).st_ino == os.fstat(second).st_ino
    for descriptor in (first, second):
        os.close(descriptor)
    ours.close()
