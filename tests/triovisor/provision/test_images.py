"""Disk images."""

import subprocess

import pytest

from triovisor.provision import SetupError
from triovisor.provision.images import check_image, create_ext4, create_image


def test_an_image_is_sparse_and_of_its_size(tmp_path):
    image = create_image(tmp_path / "disk.img", 1 << 30)
    assert check_image(image) == 1 << 30
    assert image.stat().st_blocks == 0


def test_an_ext4_image_holds_what_it_was_given(tmp_path):
    contents = tmp_path / "contents"
    contents.mkdir()
    (contents / "hello").write_text("there")
    image = create_ext4(tmp_path / "disk.img", 16, contents)
    said = subprocess.run(["debugfs", "-R", "cat /hello", image], capture_output=True, text=True, check=True)
    assert said.stdout == "there"
    assert image.stat().st_blocks * 512 < 8 << 20


@pytest.mark.parametrize("size", [0, 511, 513, -512])
def test_a_size_that_is_no_disks_is_refused(tmp_path, size):
    with pytest.raises(SetupError, match="no size for a disk"):
        create_image(tmp_path / "disk.img", size)


def test_an_image_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "disk.img").write_text("precious")
    with pytest.raises(SetupError, match="File exists"):
        create_ext4(tmp_path / "disk.img", 16)
    assert (tmp_path / "disk.img").read_text() == "precious"


def test_nothing_half_made_is_left_where_contents_do_not_fit(tmp_path):
    contents = tmp_path / "contents"
    contents.mkdir()
    (contents / "large").write_bytes(bytes(range(256)) * 40960)
    with pytest.raises(SetupError, match="mke2fs"):
        create_ext4(tmp_path / "disk.img", 4, contents)
    assert not (tmp_path / "disk.img").exists()


def test_contents_that_are_no_folder_are_named(tmp_path):
    with pytest.raises(SetupError, match="missing: is no folder"):
        create_ext4(tmp_path / "disk.img", 16, tmp_path / "missing")


@pytest.mark.parametrize(("size", "says"), [(100, "at least one sector"), (1000, "no multiple of a sector")])
def test_a_file_that_is_no_image_is_refused(tmp_path, size, says):
    (tmp_path / "disk.img").write_bytes(bytes(size))
    with pytest.raises(SetupError, match=says):
        check_image(tmp_path / "disk.img")
    with pytest.raises(SetupError, match="create it with"):
        check_image(tmp_path / "missing.img")
    with pytest.raises(SetupError, match="no regular file"):
        check_image(tmp_path)
