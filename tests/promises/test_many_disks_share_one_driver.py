"""Sixteen disks in one guest, and fifty guests on one driver: each has its own data and outlives the driver."""

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel.abi.status import Status
from tests.promises.lab import start_lab
from tests.promises.load import verified_load
from triovisor.client import TvError

LETTERS = "abcdefghijklmnop"
GUESTS = 50
BLOCK = 4096
MARK = 'while :; do echo "$1"; done | dd of=/dev/$0 bs=4k count=4 iflag=fullblock seek=3 conv=notrunc,fsync 2>&1'
"""A script that fills a disk's blocks 3 to 6 with a word's repetition, and flushes them."""


def marked(word: str) -> bytes:
    return (f"{word}\n".encode() * (4 * BLOCK))[: 4 * BLOCK]


def read(lab, guest: str, vdev: str) -> bytes:
    found: bytes = lab.run_in(guest, "dd", f"if=/dev/{vdev}", "bs=4k", "skip=3", "count=4", "iflag=direct")
    return found


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "cold"])
def test_sixteen_disks_of_a_guest_are_told_apart_and_outlive_their_driver(tmp_path, images, standby):
    with start_lab(tmp_path, standby=standby) as lab:
        use_sixteen_disks(lab, images)


def use_sixteen_disks(lab, images) -> None:
    disks = [images(f"sixteen-{letter}", 4) for letter in LETTERS]
    lab.create("g", *disks)
    for letter in LETTERS:
        lab.run_in("g", "sh", "-c", MARK, f"vd{letter}", f"disk {letter}")
    with contextlib.ExitStack() as loads:
        for letter in "bhp":
            loads.enter_context(verified_load(lab.client, "g", f"vd{letter}", depth=4, span="2m"))
        for _ in range(3):
            lab.watch.kill()
        for letter in set(LETTERS) - set("bhp"):
            assert read(lab, "g", f"vd{letter}") == marked(f"disk {letter}")
    for letter, image in zip(LETTERS, disks, strict=True):
        assert letter in "bhp" or image.read_bytes()[3 * BLOCK : 7 * BLOCK] == marked(f"disk {letter}")


def in_all(act: Callable[[str], object], guests: Iterable[str]) -> None:
    """In several guests at a time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, guests))


def test_fifty_guests_on_one_driver_all_outlive_it(tmp_path, images):
    disks = {f"g{number}": images(f"fifty-{number}", 4) for number in range(GUESTS)}
    loaded, *others = disks
    with start_lab(tmp_path, standby=True) as lab:
        for name, image in disks.items():
            lab.create(name, image, memory=24)
        with verified_load(lab.client, loaded, depth=4, span="2m"):
            in_all(lambda name: lab.run_in(name, "sh", "-c", MARK, "vda", name), others)
            for _ in range(3):
                lab.watch.kill()
            found = dict.fromkeys(others, b"")
            in_all(lambda name: found.update({name: read(lab, name, "vda")}), others)
        assert found == {name: marked(name) for name in others}
    for name in others:
        assert disks[name].read_bytes()[3 * BLOCK : 7 * BLOCK] == marked(name)


def test_a_driver_that_has_no_room_for_another_disk_says_so_and_what_it_serves_it_serves(tmp_path, images):
    """400 MiB of address space are room for eleven disks, with the largest rings and all of them flushed at once."""
    disks = [images(f"room-{letter}", 4) for letter in LETTERS[:12]]
    with start_lab(tmp_path, standby=True, address_space=400) as lab:
        lab.create("g", *disks[:11], memory=320)
        for refused in (disks[11:], disks):
            with pytest.raises(TvError) as refusal:
                lab.create("h", *refused)
            assert refusal.value.status is Status.ENOSPC
            assert refusal.value.why == (
                "guest h: blkback serves 11 disks and 11 at most: give it more address_space in the boot manifest"
            )
        assert [domain.name for domain in lab.client.list()] == ["dom0", "blkback", "g"]
        for _ in range(2):
            in_all(lambda letter: lab.run_in("g", "sh", "-c", MARK, f"vd{letter}", letter), LETTERS[:11])
            lab.watch.kill()
        assert [read(lab, "g", f"vd{letter}") for letter in LETTERS[:11]] == [marked(letter) for letter in LETTERS[:11]]
        assert len(lab.watch.dead()) == 2, "it never died of a lack of room"
        lab.client.destroy("g")
        lab.create("h", disks[11])
