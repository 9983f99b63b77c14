"""A real guest and its agent: everything here boots User-Mode Linux."""

import hashlib
import os
import shutil
import signal
from pathlib import Path

import trio

from domains.guests.agent_events import Exited, Failed, Lost
from domains.guests.agent_frames import OutputStream, ShutdownMode
from domains.guests.uml import ExitReason
from kernel.abi.cache import find_program
from triovisor.provision.files import is_static
from triovisor.provision.images import create_ext4

ALL_BYTES = bytes(range(256))

GONE = "while pidof {}; do :; done"
"""Ends once process 1 has reaped the last of that name."""


async def test_the_agent_tells_which_kernel_runs_and_that_nothing_went_wrong(guest):
    ready = await guest.link.wait_ready()
    out, _, _ = await guest.run("uname", "-r")
    assert out.decode().strip() == ready.release
    assert len(ready.boot_id) == 36
    assert ready.trouble == ""


async def test_all_256_byte_values_pass_in_and_out_on_both_streams(guest):
    out, err, end = await guest.run("sh", "-c", "tee /dev/stderr", given=ALL_BYTES * 40)
    assert out == ALL_BYTES * 40
    assert err == ALL_BYTES * 40
    assert (end.status, end.signal) == (0, None)


async def test_arguments_environment_and_folder_pass_unchanged(guest):
    words = [b"printf", b"%s|%s|%s", b"", b"a b\n\xff", "ü".encode()]
    out, _, _ = await guest.run(*words)
    assert out == b"|a b\n\xff|" + "ü".encode()
    out, _, _ = await guest.run("sh", "-c", "echo $A $HOME; pwd", env={b"A": b"x=y", b"HOME": b"/h"}, folder=b"/tmp")
    assert out == b"x=y /h\n/tmp\n"


async def test_exit_codes_and_signals_are_told_apart(guest):
    for code in (0, 1, 127, 255):
        assert (await guest.run("sh", "-c", f"exit {code}"))[2].status == code
    end = (await guest.run("sh", "-c", "kill -9 $$"))[2]
    assert (end.status, end.signal) == (None, signal.SIGKILL)


async def test_what_cannot_be_run_is_said_with_its_errno(guest):
    end = (await guest.run("/no/such/program"))[2]
    assert isinstance(end, Failed)
    assert (end.errno, end.why) == (2, "No such file or directory")
    assert isinstance((await guest.run("true", folder=b"/no"))[2], Failed)
    assert (await guest.run("true"))[2].status == 0


async def test_a_signal_reaches_the_whole_process_group(guest):
    script = "trap 'echo caught; exit 7' TERM; sleep 60 & until pidof sleep >/dev/null; do :; done; echo up; wait"
    command = guest.link.start([b"sh", b"-c", script.encode()])
    assert await command.receive() == (OutputStream.STDOUT, b"up\n")
    command.signal(signal.SIGTERM)
    assert await command.receive() == (OutputStream.STDOUT, b"caught\n")
    assert await command.receive() is None
    assert command.end.status == 7
    assert await guest.run("sh", "-c", GONE.format("sleep"))


async def test_five_megabytes_come_whole(guest):
    out, _, end = await guest.run("sh", "-c", "seq 1 760000 | head -c 5000000")
    assert end.status == 0
    assert out == b"".join(b"%d\n" % n for n in range(1, 760001))[:5000000]


async def test_a_megabyte_of_input_goes_in_whole(guest):
    data = os.urandom(1 << 20)
    out, _, _ = await guest.run("sha256sum", given=data)
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_64_commands_at_once_are_kept_apart(guest):
    results = {}

    async def run(number: int) -> None:
        script = f"cat; echo {number} >&2; exit {number}"
        results[number] = await guest.run("sh", "-c", script, given=b"%d" % number * 9)

    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(run, number)
    for number, (out, err, end) in results.items():
        assert (out, err, end.status) == (b"%d" % number * 9, b"%d\n" % number, number)


async def test_a_reader_that_does_not_read_and_a_flood_starve_nobody(guest):
    unread = guest.link.start([b"cat", b"/dev/zero"])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(guest.run, "sh", "-c", "head -c 2000000 /dev/zero")
        for number in range(10):
            assert (await guest.run("echo", str(number)))[0] == b"%d\n" % number
    unread.signal(signal.SIGKILL)
    while await unread.receive() is not None:
        pass
    assert unread.end.signal == signal.SIGKILL


async def test_input_for_a_command_that_does_not_read_it_is_no_fault(guest):
    out, _, end = await guest.run("sh", "-c", "exec <&-; sleep 0.1; echo over", given=bytes(200_000))
    assert (out, end.status) == (b"over\n", 0)
    assert guest.link.faults == []


async def test_a_child_that_outlives_its_command_does_not_hold_it_up(guest):
    out, _, end = await guest.run("sh", "-c", "sleep 1000 & echo started")
    assert (out, end.status) == (b"started\n", 0)


async def test_an_agent_that_dies_is_started_again_and_its_commands_are_lost(guest):
    sleeper = guest.link.start([b"sleep", b"1000"])
    killer = guest.link.start([b"sh", b"-c", b"kill -9 $(pidof agent)"])
    assert await sleeper.receive() is None
    assert await killer.receive() is None
    assert isinstance(sleeper.end, Lost)
    await guest.link.wait_ready()
    assert (await guest.run("echo", "again"))[0] == b"again\n"
    assert await guest.run("sh", "-c", GONE.format("sleep"))


async def test_garbage_on_the_line_is_told_and_the_next_command_runs(guest):
    sleeper = guest.link.start([b"sh", b"-c", b"echo up; sleep 1000"])
    await sleeper.receive()
    await guest.link.line.send_all(b"garbage\xff" * 100)
    assert await sleeper.receive() is None
    (fault,) = guest.link.faults
    assert fault.by_us
    assert "bad frame" in fault.what
    await guest.link.wait_ready()
    assert (await guest.run("echo", "again"))[0] == b"again\n"


async def test_a_power_off_is_told_from_a_reboot_a_halt_and_a_crash(boot_guest):
    for mode, reason in (
        (ShutdownMode.POWEROFF, ExitReason.POWEROFF),
        (ShutdownMode.HALT, ExitReason.POWEROFF),
        (ShutdownMode.REBOOT, ExitReason.REBOOT),
    ):
        async with boot_guest() as guest:
            sleeper = guest.link.start([b"sleep", b"1000"])
            guest.link.shut_down(mode, 1000)
            assert (await guest.ended()).reason is reason
            assert await sleeper.receive() is None
            assert guest.link.stopping is mode
    async with boot_guest() as guest:
        guest.link.start([b"sh", b"-c", b"echo c > /proc/sysrq-trigger"])
        end = await guest.ended()
        assert end.reason is ExitReason.CRASH
        assert end.detail == "Kernel panic - not syncing: sysrq triggered crash"
    async with boot_guest() as guest:
        os.killpg(guest.process.pid, signal.SIGKILL)
        assert (await guest.ended()).reason is ExitReason.KILLED


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(boot_guest):
    async with boot_guest() as guest:
        stubborn = guest.link.start([b"sh", b"-c", b"trap '' TERM; echo up; while :; do sleep 1; done"])
        await stubborn.receive()
        guest.link.shut_down(ShutdownMode.POWEROFF, 200)
        assert (await guest.ended()).reason is ExitReason.POWEROFF


async def test_the_kernels_line_names_the_host_and_tells_of_a_disk_that_is_not_there(boot_guest):
    async with boot_guest(hostname="db-1", extra=("tv.mount=/dev/vda:/mnt:ext4",)) as guest:
        assert (await guest.run("hostname"))[0] == b"db-1\n"
        ready = await guest.link.wait_ready()
        assert ready.trouble == "mount /dev/vda: No such file or directory"


async def test_a_disk_is_mounted_where_the_line_says_and_unmounted_clean(boot_guest, tmp_path):
    image = create_ext4(tmp_path / "disk.img", 16)
    words = {"fast": False, "extra": (f"ubd0={image}", "tv.mount=/dev/ubda:/data:ext4")}
    async with boot_guest(**words) as guest:
        assert (await guest.run("sh", "-c", "echo kept > /data/file"))[2].status == 0
        guest.link.shut_down(ShutdownMode.POWEROFF, 1000)
        assert (await guest.ended()).reason is ExitReason.POWEROFF
    state = await trio.run_process(["dumpe2fs", "-h", str(image)], capture_stdout=True, capture_stderr=True)
    assert b"needs_recovery" not in state.stdout
    async with boot_guest(**words) as guest:
        assert (await guest.run("cat", "/data/file"))[0] == b"kept\n"


def make_root(folder: Path) -> Path:
    """A root disk with busybox, and an init that does nothing."""
    contents = folder / "root"
    (contents / "bin").mkdir(parents=True)
    (contents / "sbin").mkdir()
    busybox = find_program("busybox", is_static)
    assert busybox is not None
    shutil.copy(busybox, contents / "bin" / "busybox")
    for name in ("sh", "cat"):
        (contents / "bin" / name).symlink_to("busybox")
    init = contents / "sbin" / "init"
    init.write_text("#!/bin/sh\nwhile :; do /bin/busybox sleep 1; done\n")
    init.chmod(0o755)
    (contents / "whose").write_text("the disk's\n")
    return create_ext4(folder / "root.img", 32, contents)


async def test_a_root_disk_becomes_the_root_and_the_agent_comes_along(boot_guest, tmp_path):
    image = make_root(tmp_path)
    async with boot_guest(fast=False, root="/dev/ubda", extra=(f"ubd0={image}",)) as guest:
        assert (await guest.link.wait_ready()).trouble == ""
        assert (await guest.run("cat", "/whose"))[0] == b"the disk's\n"
        assert b"/sbin/init" in (await guest.run("cat", "/proc/1/cmdline"))[0]
        guest.link.shut_down(ShutdownMode.POWEROFF, 1000)
        assert (await guest.ended()).reason is ExitReason.POWEROFF


async def test_24_mib_are_enough_to_boot_and_to_run_a_command(boot_guest):
    async with boot_guest(memory_mib=24) as guest:
        assert (await guest.run("echo", "small"))[0] == b"small\n"


async def test_getrandom_does_not_wait_although_the_host_gives_no_random_device(guest):
    out, _, end = await guest.run("sh", "-c", "head -c 32 /dev/random | wc -c")
    assert (out.strip(), end.status) == (b"32", 0)


async def test_a_guest_that_dies_under_a_command_says_so(guest):
    sleeper = guest.link.start([b"sleep", b"1000"])
    os.killpg(guest.process.pid, signal.SIGKILL)
    assert await sleeper.receive() is None
    assert isinstance(sleeper.end, Lost)
    assert not isinstance(sleeper.end, Exited)
