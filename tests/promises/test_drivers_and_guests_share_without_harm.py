"""Several guests on one driver, several disks in one guest, disks to be read only, discard, zeros: all outlive it."""

import pytest

from tests.promises.lab import start_lab
from tests.promises.load import verified_load

BLOCK = 4096


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def test_two_guests_on_one_driver_are_both_unharmed_by_its_death(lab, images):
    for name in ("a", "b"):
        lab.create(name, images(f"shared-{name}", 8))
    with verified_load(lab.client, "a"), verified_load(lab.client, "b"):
        for _ in range(10):
            lab.watch.kill()


def test_two_disks_of_one_guest_are_both_unharmed_by_their_drivers_death(lab, images):
    lab.create("g", images("first", 8), images("second", 8))
    with verified_load(lab.client, "g", "vda"), verified_load(lab.client, "g", "vdb"):
        for _ in range(10):
            lab.watch.kill()


def test_a_guest_may_come_and_go_while_the_driver_of_another_dies(lab, images):
    lab.create("stays", images("stays", 8))
    with verified_load(lab.client, "stays"):
        for _ in range(3):
            lab.create("goes", images("goes", 8))
            with verified_load(lab.client, "goes"):
                lab.watch.kill()
            lab.client.destroy("goes")
            lab.note_vbds()
            lab.watch.kill()


def test_a_disk_that_may_only_be_read_refuses_writes_before_and_after_its_drivers_death(lab, images):
    image = images("read-only", 8)
    image.write_bytes(bytes(range(256)) * (8 << 12))
    lab.create("g", image, read_only=True)
    for _ in range(3):
        assert lab.run_in("g", "cat", "/sys/block/vda/ro") == b"1\n"
        written = lab.client.exec("g", ["dd", "if=/dev/zero", "of=/dev/vda", "bs=4k", "count=1"])
        assert written.status != 0
        read = lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=2", "skip=100", "iflag=direct")
        assert read == bytes(range(256)) * 32
        lab.watch.kill()
    assert image.read_bytes() == bytes(range(256)) * (8 << 12)


def test_one_image_may_be_read_by_two_guests_at_once(lab, images):
    image = images("both-read", 8)
    image.write_bytes(b"\x5a" * (8 << 20))
    for name in ("a", "b"):
        lab.create(name, image, read_only=True)
    lab.watch.kill()
    for name in ("a", "b"):
        assert lab.run_in(name, "dd", "if=/dev/vda", "bs=4k", "count=1", "iflag=direct") == b"\x5a" * BLOCK


def test_discarded_blocks_read_as_zeros_give_their_space_back_and_stay_so_when_the_driver_dies(lab, images):
    image = images("discard", 8)
    image.write_bytes(b"\xff" * (8 << 20))
    lab.create("g", image)
    for number in range(3):
        before = image.stat().st_blocks
        offset = number << 20
        lab.run_in("g", "blkdiscard", "-o", str(offset), "-l", str(1 << 20), "/dev/vda")
        assert before - image.stat().st_blocks == (1 << 20) // 512
        lab.watch.kill()
        block = str(offset // BLOCK)
        assert lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=1", f"skip={block}", "iflag=direct") == bytes(BLOCK)
    assert image.read_bytes() == bytes(3 << 20) + b"\xff" * (5 << 20)


@pytest.mark.parametrize("how", ["unmap", "allocated"])
def test_zeros_that_a_guest_asks_for_are_there_and_stay_when_the_driver_dies(lab, images, how):
    """With `unmap` their space is given back; without, the image keeps it."""
    image = images(f"zeros-{how}", 8)
    image.write_bytes(b"\xff" * (8 << 20))
    lab.create("g", image)
    for number in range(3):
        before = image.stat().st_blocks
        offset = number << 20
        lab.run_in("g", "zero", "/dev/vda", str(offset + 512), str(1 << 20), *(["unmap"] if how == "unmap" else []))
        freed = before - image.stat().st_blocks
        assert (0 < freed <= (1 << 20) // 512) if how == "unmap" else freed == 0
        lab.watch.kill()
        block = str(offset // BLOCK + 1)
        assert lab.run_in("g", "dd", "if=/dev/vda", "bs=4k", "count=1", f"skip={block}", "iflag=direct") == bytes(BLOCK)
    assert image.read_bytes() == b"\xff" * 512 + bytes(3 << 20) + b"\xff" * ((5 << 20) - 512)
    most = lab.run_in("g", "cat", "/sys/block/vda/queue/write_zeroes_max_bytes")
    assert int(most) == 64 << 20, "a kernel that was told UNSUPPORTED sets it to 0, and writes zeros itself"


def test_flushes_discards_and_zeros_under_way_when_the_driver_dies_end_without_an_error(lab, images):
    lab.create("g", images("flushed", 8))
    script = """
        trap 'exit 0' TERM
        while :; do
            dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=1500 conv=notrunc,fsync 2>&1 || exit 1
            blkdiscard -o 7340032 -l 65536 /dev/vda || exit 1
            zero /dev/vda 7405568 65536 || exit 1
            zero /dev/vda 7405568 65536 unmap || exit 1
        done
    """
    with verified_load(lab.client, "g"), lab.client.command("g", ["sh", "-c", script]) as command:
        for _ in range(10):
            lab.watch.kill()
        assert not [said for said in command.take() if "Ended" in type(said).__name__]
