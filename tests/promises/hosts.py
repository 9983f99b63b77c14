"""Hosts that are poorer than this one, made for a hypervisor of the test's own: an ordinary user's, and one that
refuses namespaces."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel.doctor import examine
from kernel.doctor.finding import Jail, jail_of
from tests.domains.runtime.stand_in import NOBODY, as_nobody
from tests.not_possible import not_possible
from triovisor.provision import guest_files

__all__ = ["HOSTS", "Host", "folder_for", "image_in"]

REFUSE_NAMESPACES = """
import errno, os, sys
from domains.runtime import libc, seccomp
refused = seccomp.errno(errno.EPERM)
new_namespaces = seccomp.all_of(0, 0, 0x7E02_0080, seccomp.ALLOW, refused)
libc.prctl(38, 1)
filter = {435: seccomp.errno(errno.ENOSYS), 272: refused, 308: refused, 165: refused, 56: new_namespaces}
seccomp.assemble(filter, default=seccomp.ALLOW, newest=4096).install()
os.execv(sys.argv[1], sys.argv[1:])
"""
"""As a container's filter does it: clone3 hides its flags and is not known; unshare, setns, mount and a clone with a
namespace are refused."""


@dataclass(frozen=True, slots=True)
class Host:
    """Who runs the hypervisor, and which jail its domains get."""

    user: str
    jail: str

    def prefix(self) -> list[str]:
        """A command that executes what follows it on such a host."""
        if self.user == "root" and os.geteuid() != 0:
            not_possible("a hypervisor of root's needs root")
        if self.jail == "full" and jail_of(examine()) is Jail.REDUCED:
            not_possible("the full jail needs namespaces, seccomp and Landlock")
        user = as_nobody() if self.user != "root" and os.geteuid() == 0 else []
        return [*user, *([sys.executable, "-c", REFUSE_NAMESPACES] if self.jail == "reduced" else [])]

    def __str__(self) -> str:
        return f"{self.user}-{self.jail}"


HOSTS = (Host("ordinary user", "full"), Host("ordinary user", "reduced"), Host("root", "reduced"))
"""Root with the full jail is what every other test has."""


@contextmanager
def folder_for(host: Host) -> Iterator[Path]:
    """A folder that is that user's, with what set-up built for guests in `guest`; pytest's own are closed to all but
    one."""
    folder = Path(tempfile.mkdtemp(prefix="triovisor-host.", dir="/dev/shm"))
    try:
        files = guest_files()
        guest = folder / "guest"
        guest.mkdir()
        shutil.copyfile(files.initrd, guest / "initramfs.cpio")
        (guest / "lpj").write_text(f"{files.lpj or 0}")
        if host.user != "root" and os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        shutil.rmtree(folder)


def image_in(folder: Path, name: str, mib: int = 8) -> Path:
    """A sparse image of zeros that is the folder's owner's."""
    path = folder / name
    with path.open("wb") as file:
        file.truncate(mib << 20)
    owner = folder.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
    return path
