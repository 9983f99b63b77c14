"""How a guest is started, and what its end means."""

import signal

import pytest
from msgspec.structs import replace

from domains.guests.uml import ExitReason, UmlDisk, UmlSpec, classify_exit, command_line
from kernel.abi.status import Refused

SPEC = UmlSpec(memory_mib=64, initrd="/proc/self/fd/5", console_fd=3, agent_fd=4, uml_dir="/run/uml", umid="g")


def test_the_line_names_memory_disks_in_order_and_both_lines():
    disks = (UmlDisk("/run/b.sock", 1), UmlDisk("/run/a.sock", 0))
    words = command_line(replace(SPEC, disks=disks, lpj=123, hostname="db", root="/dev/vda", extra=("nohz=off",)))
    assert words[:5] == ["linux.uml", "mem=64M", "initrd=/proc/self/fd/5", "uml_dir=/run/uml/", "umid=g"]
    assert [word for word in words if word.startswith("virtio_uml")] == [
        "virtio_uml.device=/run/a.sock:2:0",
        "virtio_uml.device=/run/b.sock:2:1",
    ]
    assert {"con0=fd:3", "con1=fd:4", "noreboot", "con=null"} <= set(words)
    assert words[-4:] == ["lpj=123", "tv.hostname=db", "tv.root=/dev/vda", "nohz=off"]


@pytest.mark.parametrize("fast", [True, False])
def test_hostfs_is_left_out_of_every_kernel(fast):
    (blacklist,) = (w for w in command_line(replace(SPEC, fast=fast)) if w.startswith("initcall_blacklist="))
    assert "init_hostfs" in blacklist.partition("=")[2].split(",")
    assert ("ssl_init" in blacklist) is fast


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"memory_mib": 23}, "memory = 23: a guest needs at least 24 (MiB)"),
        ({"disks": (UmlDisk("/a", 0), UmlDisk("/b", 0))}, "two disks have the same place"),
        ({"disks": (UmlDisk("/a:b", 0),)}, "'/a:b' must have"),
        ({"disks": (UmlDisk("/" + "a" * 107, 0),)}, "at most 107 bytes"),
        ({"extra": ("a b",)}, "'a b': a word of the kernel's line has no spaces in it"),
        ({"hostname": "x con0=fd:9"}, "no spaces"),
        ({"extra": ("x" * 4096,)}, "at most 4095 fit"),
    ],
)
def test_what_cannot_boot_is_refused_in_one_line(wrong, says):
    with pytest.raises(Refused) as refused:
        command_line(replace(SPEC, **wrong))
    assert says in refused.value.why
    assert "\n" not in refused.value.why


PANIC = b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009\n [<6002c171>] fork_handler+0x92\n"


@pytest.mark.parametrize(
    ("status", "console", "reason", "detail"),
    [
        (0, b"reboot: System halted\n", ExitReason.POWEROFF, "reboot: System halted"),
        (0, b"reboot: Power down\r\n", ExitReason.POWEROFF, "reboot: Power down"),
        (0, b"reboot: Restarting system\n", ExitReason.REBOOT, "reboot: Restarting system"),
        (0, b"reboot: Restarting system\nlies\nreboot: Power down\n", ExitReason.POWEROFF, "reboot: Power down"),
        (0, b"", ExitReason.POWEROFF, ""),
        (134, PANIC, ExitReason.CRASH, PANIC.decode().splitlines()[0]),
        (-signal.SIGABRT, PANIC, ExitReason.CRASH, PANIC.decode().splitlines()[0]),
        (-signal.SIGABRT, b"", ExitReason.CRASH, ""),
        (0, b"Kernel panic - not syncing\nreboot: Power down", ExitReason.POWEROFF, "reboot: Power down"),
        (-signal.SIGKILL, b"hello", ExitReason.KILLED, "killed by signal 9"),
        (1, b"a\nToo few physical memory!\n\n", ExitReason.FAILED_EARLY, "Too few physical memory!"),
        (134, b"reboot: System halted\n", ExitReason.POWEROFF, "reboot: System halted (exit status 134)"),
        (-signal.SIGALRM, b"reboot: Power down\n", ExitReason.POWEROFF, "reboot: Power down (exit status -14)"),
        (1, b"reboot: Restarting system\n", ExitReason.REBOOT, "reboot: Restarting system (exit status 1)"),
        (134, b"reboot: System halted\n" + PANIC, ExitReason.CRASH, PANIC.decode().splitlines()[0]),
    ],
)
def test_an_end_is_classified_by_status_and_last_words(status, console, reason, detail):
    end = classify_exit(status, console)
    assert (end.reason, end.detail) == (reason, detail)
