"""`tv image` with the real qemu-img: what it makes, and what it refuses in one line."""

import json
import os
import subprocess
import sys

import pytest

from kernel.images import open_image
from triovisor import overlays
from triovisor.overlays import ImageError

BASE = os.urandom(1 << 20) + b"x" * 300
COUNTS_AT = 2 * 65536
"""Where QEMU puts the reference counts of a new image."""
TV = [sys.executable, "-m", "triovisor.cli", "image"]


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.img"
    path.write_bytes(BASE)
    return path


@pytest.fixture
def overlay(base, tmp_path):
    path = tmp_path / "web.qcow2"
    overlays.create(path, base)
    return path


def tv(*words: object, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([*TV, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def write(image, *orders: str) -> None:
    words = [word for order in orders for word in ("-c", order)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, image], check=True, capture_output=True)


def leak(image) -> None:
    """Have clusters counted as used that nothing uses."""
    write(image, "write 0 128k")
    with image.open("r+b") as file:
        file.truncate(20 << 20)
        file.seek(COUNTS_AT)
        file.write(bytes([0, 1]) * 200)


def mistake(act, *arguments, **settings) -> str:
    with pytest.raises(ImageError) as caught:
        act(*arguments, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert "json:" not in line
    return line


def test_an_overlay_is_as_large_as_its_base_in_whole_sectors_or_as_was_asked(base, tmp_path):
    made = overlays.create(tmp_path / "a", base)
    assert (made.size_bytes, made.format, made.backing) == ((1 << 20) + 512, "qcow2", str(base))
    assert overlays.create(tmp_path / "b", base, 10 << 20).size_bytes == 10 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base.img"]


def test_commit_brings_an_overlay_into_its_base_and_empties_it(overlay, base):
    write(overlay, "write -P 7 512 1024")
    used = overlays.info(overlay).used_bytes
    overlays.commit(overlay, base)
    assert base.read_bytes()[: len(BASE)] == BASE[:512] + b"\7" * 1024 + BASE[1536:]
    assert overlays.info(overlay).used_bytes < used
    assert overlays.check(overlay) == overlays.Checked(0, 0, 0)


def test_what_is_in_use_is_looked_at_but_neither_checked_nor_committed(overlay, base):
    for image, read_only in ((overlay, False), (base, False)):
        held = open_image(image, read_only=read_only)
        assert overlays.info(overlay).size_bytes
        assert "is in use: shut down the guest" in mistake(overlays.commit, overlay, base)
        held.close()
    held = open_image(overlay, read_only=False)
    assert "is in use" in mistake(overlays.check, overlay)
    assert "is in use" in mistake(overlays.check, overlay, repair=True)
    held.close()


def test_leaks_and_errors_are_told_apart_and_repaired(overlay):
    leak(overlay)
    checked = overlays.check(overlay)
    assert checked.leaks > 0
    assert checked.errors == 0
    assert overlays.check(overlay, repair=True).repaired > 0
    assert overlays.check(overlay) == overlays.Checked(0, 0, 0)
    with overlay.open("r+b") as file:
        file.seek(COUNTS_AT)
        file.write(bytes(64))  # counts of those that do
    assert overlays.check(overlay).errors > 0
    overlays.check(overlay, repair=True)
    assert overlays.check(overlay).errors == 0


def test_a_mistake_is_one_line_that_names_the_image(overlay, base, tmp_path):
    assert mistake(overlays.create, overlay, base) == f"{overlay}: it exists: name a new file, or remove it"
    assert "no such folder" in mistake(overlays.create, tmp_path / "no" / "x", base)
    assert "an overlay stands on a raw one" in mistake(overlays.create, tmp_path / "x", overlay)
    assert "no such file" in mistake(overlays.create, tmp_path / "x", tmp_path / "none")
    assert "no qcow2 image" in mistake(overlays.check, base)
    assert "no qcow2 image" in mistake(overlays.commit, base, base)
    assert f"give --backing {base}" in mistake(overlays.commit, overlay, overlay)
    assert "name an image that you may read" in mistake(overlays.info, tmp_path)
    for text in ("0", "513", "-1", "1e3", "10 G", "9" * 16, "99999999T"):
        assert f"size {text!r}" in mistake(overlays.parse_size, text)
    assert overlays.parse_size("10G") == 10 << 30


@pytest.mark.parametrize("damage", ["garbage", "cut", "half"])
def test_a_broken_image_is_refused_in_one_line(overlay, base, damage):
    data = overlay.read_bytes()
    overlay.write_bytes({"garbage": data[:4] + os.urandom(600), "cut": data[:4], "half": data[:70]}[damage])
    for act in (overlays.info, overlays.check):
        assert mistake(act, overlay).startswith(f"{overlay}: ")


def test_the_name_that_an_image_holds_opens_nothing(overlay, base, tmp_path):
    """A FIFO would hold up whoever opens it, and a commit would write where the image says."""
    other = tmp_path / "other"
    other.write_bytes(BASE)
    for name in (tmp_path / "fifo", other):
        if name != other:
            os.mkfifo(name)
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, overlay], check=True)
        assert overlays.info(overlay).backing == str(name)
        assert overlays.check(overlay).errors == 0
        assert f"give --backing {name}" in mistake(overlays.commit, overlay, base)
    assert other.read_bytes() == BASE


def test_a_name_in_an_image_cannot_write_to_the_terminal(overlay):
    name = "a\x1b[2J\n"
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, overlay], check=True)
    assert overlays.info(overlay).backing == "a?[2J?"
    assert "\x1b" not in tv("info", overlay).stdout


def test_a_data_file_that_an_image_names_holds_nobody_up(base, tmp_path):
    image = tmp_path / "image"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on", image, "1M"],
        check=True,
    )
    (tmp_path / "data").unlink()
    os.mkfifo(tmp_path / "data")
    for act in (overlays.info, overlays.check):
        assert "keeps its data in another file" in mistake(act, image)
    assert "keeps its data in another file" in mistake(overlays.commit, image, base)


def test_the_commands_print_and_exit_as_scripts_expect(overlay, base, tmp_path):
    assert "a disk of 2097152 bytes" in tv("create", tmp_path / "a", "--backing", base, "--size", "2M").stdout
    told = json.loads(tv("info", "--json", overlay).stdout)
    assert told["backing"] == str(base)
    assert "cluster_bytes          : 65536" in tv("info", overlay).stdout
    assert json.loads(tv("check", "--json", overlay).stdout) == {"errors": 0, "leaks": 0, "repaired": 0}
    tv("commit", overlay, "--backing", base)
    leak(overlay)
    refused = tv("check", overlay, status=1)
    assert f"tv: {overlay}: it is whole, but" in refused.stderr
    assert f"tv image check --repair {overlay} gives them back" in refused.stderr
    tv("check", "--repair", overlay)
    tv("check", overlay)
    assert tv("create", overlay, "--backing", base, status=1).stderr.count("\n") == 1
    assert "--backing" in tv("commit", overlay, status=2).stderr
