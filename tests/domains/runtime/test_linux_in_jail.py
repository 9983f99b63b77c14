"""User-Mode Linux boots inside a guest's jail."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from kernel.abi.spawn import Jail
from kernel.doctor import require
from tests.domains.runtime.stand_in import Zygote

MIB = 1 << 20
INIT = b"""#!/bin/sh
mount -t proc proc /proc
echo "hello from $(uname -r) with $(ls -d /proc/[0-9]* | wc -l) processes"
mount -t hostfs none /mnt 2>/dev/null && echo "hostfs: $(ls /mnt)" || echo "no hostfs"
poweroff -f
"""


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in newc format: mode and content by name."""
    archive = b""
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        device = (5, 1) if mode == 0o020600 else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        archive += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return archive + bytes(-len(archive) % 512)


@contextmanager
def ramdisk() -> Iterator[int]:
    """A sealed-enough memfd with busybox and the probing /init."""
    with open("/bin/busybox", "rb") as file:
        busybox = file.read()
    folders = {name: (0o040755, b"") for name in ("bin", "proc", "mnt", "dev")}
    links = {f"bin/{name}": (0o120777, b"busybox") for name in ("sh", "mount", "uname", "ls", "wc", "poweroff")}
    files = {"dev/console": (0o020600, b""), "bin/busybox": (0o100755, busybox), "init": (0o100755, INIT)}
    descriptor = os.memfd_create("ramdisk")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(cpio({**folders, **files, **links}))
        yield descriptor
    finally:
        os.close(descriptor)


def test_linux_boots_in_a_guests_jail_reaches_its_vhost_socket_and_not_the_host(zygote: Zygote):
    require("guest-kernel")
    require("busybox")
    jail = Jail("guest", proc=True, shm_bytes=64 * MIB, tmp_bytes=MIB, run_bytes=MIB, nproc=256)
    kernel_path = shutil.which("linux.uml")
    assert kernel_path is not None
    with open(kernel_path, "rb") as kernel, ramdisk() as initrd:
        report = zygote.probe("boot_linux", jail, kernel=kernel.fileno(), ramdisk=initrd)
    assert "hello from 6." in report["console"], report
    assert "no hostfs" in report["console"]
    assert report["vhost"] == 12, "a whole vhost-user header"
    assert report["exit"] == 0
