"""A disk in qcow2 beside a model of it: partial writes, the end of what is beneath, and daemons that die."""

import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.abi.io.blkif import SECTOR_BYTES, Op, RspStatus
from tests.drivers.blkback.overlay_disk import PROGRAM, Disk, Ring, make_overlay
from tests.promises.events import wait_until

SECTORS = 700
BASE_BYTES = 5 * 65536 + 3 * SECTOR_BYTES + 300
"""What is beneath ends within a cluster, and within a sector; the overlay is larger."""
CLUSTERS = ("cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=64k,extended_l2=on")


def daemons(parent: int | None = None) -> list[int]:
    """The storage daemons of a process, by default of this one."""
    words = ["pgrep", "-P", str(parent or os.getpid()), "-f", PROGRAM]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    return [int(pid) for pid in told.stdout.split()]


def base_of(length: int) -> bytes:
    return bytes((at * 7 + at // SECTOR_BYTES) & 0xFF or 1 for at in range(length))


def in_whole(base: bytes, size: int) -> bytearray:
    return bytearray(base[:size].ljust(size, b"\0"))


extents = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 200)).map(
    lambda pair: (pair[0] * SECTOR_BYTES, min(pair[1], SECTORS - pair[0]) * SECTOR_BYTES)
)
steps = st.one_of(
    st.tuples(st.just("write"), extents, st.integers(1, 255)),
    st.tuples(st.just("read"), extents, st.just(0)),
    st.tuples(st.sampled_from(["zero", "unmap", "discard"]), extents, st.just(0)),
    st.tuples(st.sampled_from(["flush", "kill"]), st.just((0, 0)), st.just(0)),
)


@pytest.mark.parametrize("options", CLUSTERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=st.lists(steps, min_size=1, max_size=25))
def test_whatever_is_written_in_sectors_is_read_and_survives_the_death_of_the_daemon(tmp_path, options, todo):
    base = base_of(BASE_BYTES)
    image, beneath = make_overlay(tmp_path, base, SECTORS * SECTOR_BYTES, options)
    model = in_whole(base, SECTORS * SECTOR_BYTES)
    disk = Disk(image, beneath)
    for what, (offset, length), value in todo:
        here = slice(offset, offset + length)
        match what:
            case "write":
                model[here] = data = bytes([value]) * length
                disk.write(offset, data)
            case "read":
                assert disk.read(offset, length) == model[here]
            case "zero" | "unmap":
                disk.do(Op.WRITE_ZEROES if what == "zero" else Op.ZERO_UNMAP, offset, length)
                model[here] = bytes(length)
            case "discard":
                disk.do(Op.DISCARD, offset, length)
                found = disk.read(offset, length)
                for at in range(0, length, SECTOR_BYTES):
                    sector = found[at : at + SECTOR_BYTES]
                    assert sector in (bytes(SECTOR_BYTES), model[offset + at : offset + at + SECTOR_BYTES])
                model[here] = found
            case "flush":
                disk.do(Op.FLUSH)
            case "kill":
                disk.close()
                disk = Disk(image, beneath)
    disk.close()
    disk = Disk(image, beneath)
    assert disk.read(0, len(model)) == model
    disk.close()
    assert beneath.read_bytes() == base
    wait_until(lambda: not daemons(), "the last daemon is gone")
    assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=False).returncode in (0, 3)


def small(tmp_path: Path) -> tuple[Path, Path]:
    return make_overlay(tmp_path, base_of(BASE_BYTES), 64 << 20)


def _has_answered(disk: Disk, count: int) -> bool:
    return len(disk.answered()) >= count


def test_of_many_writes_at_once_each_that_was_answered_is_there_after_a_kill(tmp_path):
    image, beneath = small(tmp_path)
    kept: dict[int, int] = {}
    for life in range(1, 9):
        disk = Disk(image, beneath)
        disk.ring.out_view[:4096] = bytes([life]) * 4096
        asked = {disk.submit(Op.WRITE, (life * 131 + n * 37) % 16000 * 4096, 4096): n for n in range(200)}
        wait_until(partial(_has_answered, disk, 20 * life), "some are answered")
        disk.close()
        answered = disk.answered()
        for number, n in asked.items():
            place = (life * 131 + n * 37) % 16000
            if number in answered:
                kept[place] = life
            elif place in kept:
                del kept[place]
    disk = Disk(image, beneath)
    for place, life in kept.items():
        assert disk.read(place * 4096, 4096) == bytes([life]) * 4096
    disk.close()


def test_what_is_asked_by_a_later_ring_comes_after_all_of_an_earlier_one(tmp_path):
    image, beneath = small(tmp_path)
    disk = Disk(image, beneath)
    earlier, later = disk.ring, Ring()
    earlier.out_view[:] = b"\1" * len(earlier.out_view)
    later.out_view[:] = b"\2" * len(later.out_view)
    numbers = [disk.submit(Op.WRITE, 0, 65536, ring=earlier) for _ in range(64)]
    numbers += [disk.submit(Op.WRITE, 0, 65536, ring=later)]
    assert {disk.status(number) for number in numbers} == {RspStatus.OK}
    assert disk.read(0, 65536) == b"\2" * 65536
    disk.close()


def test_a_daemon_that_is_killed_fails_the_overlay_with_how_it_ended(tmp_path):
    disk = Disk(*small(tmp_path))
    disk.write(0, b"x" * 512)
    (pid,) = daemons()
    os.kill(pid, signal.SIGKILL)
    assert "killed by SIGKILL" in disk.wait_failed()


HOLDER = """
import sys, time
from pathlib import Path
from tests.drivers.blkback.overlay_disk import Disk
disk = Disk(Path(sys.argv[1]), Path(sys.argv[2]))
disk.write(0, b"x" * 512)
print("serves", flush=True)
time.sleep(600)
"""


def test_without_a_pid_namespace_too_a_daemon_goes_with_its_driver(tmp_path):
    command = [sys.executable, "-c", HOLDER, *map(str, small(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "serves\n"
        (daemon,) = daemons(driver.pid)
        driver.kill()
    wait_until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon is gone")


def test_an_image_that_the_daemon_refuses_fails_each_request_and_says_why(tmp_path):
    (tmp_path / "image").write_bytes(b"QFI\xfb" + bytes(1020))
    disk = Disk(tmp_path / "image", None)
    assert disk.status(disk.submit(Op.READ, 0, 512)) == RspStatus.IO_ERROR
    assert "Unsupported qcow2 version" in disk.refused
    assert disk.status(disk.submit(Op.FLUSH, 0, 0)) == RspStatus.IO_ERROR
    disk.close()


def test_a_file_that_cannot_grow_is_an_error_of_the_request_and_the_image_stays_whole(tmp_path):
    image, beneath = small(tmp_path)
    disk = Disk(image, beneath)
    disk.write(0, b"x" * 512)
    limit = os.stat(image).st_size + (1 << 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # Python ignores SIGXFSZ
    try:
        statuses = [disk.status(disk.submit(Op.WRITE, n << 20, 65536)) for n in range(1, 40)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert statuses[0] == RspStatus.OK
    assert set(statuses) == {RspStatus.OK, RspStatus.IO_ERROR}, "EFBIG is no lack of space"
    disk.write(50 << 20, b"y" * 512)
    disk.close()
    assert subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=False).returncode in (0, 3)
