"""What a domain sees of the file system.

A zygote moves into a *template* once: a small tmpfs with read-only binds of what an interpreter needs, and nothing
else of the host. Its children are born into a copy of that, so that they have no root to change and no old one to
detach: a driver needs no mount of its own at all. What can be written is mounted by the child that asks for it.
"""

import os
from collections.abc import Iterable

from domains.runtime import libc
from domains.runtime.libc import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC
from domains.runtime.trees import minimal_cover
from kernel.abi.spawn import Jail

__all__ = ["DEVICES", "PROC_OF_HOST", "enter_template", "mount_own"]

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_STAGE = "/sys"
"""Where the template is put together: a folder that every Linux has, and under which nothing of ours lies."""

_HIDDEN = "/.host"
PROC_OF_HOST = f"{_HIDDEN}/proc"
"""The host's /proc, bound here and then covered. Nobody can reach it; but a user namespace may only mount a /proc of
its own where a fully visible one is mounted already (`mount_too_revealing` in fs/namespace.c)."""

_FOLDERS = ("/proc", "/dev/shm", "/tmp", "/run", PROC_OF_HOST)
_LINKS = ("/lib", "/lib64", "/lib32", "/bin")
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # MOUNT_ATTR_*


def enter_template(trees: Iterable[str], root_bytes: int = 1 << 20) -> None:
    """Move this process into a template root with `trees`, in the mount namespace that it made for itself.

    The trees keep their paths. Raises OSError, and then the caller's mount namespace is in no state to be used.
    """
    libc.mount("", "/", flags=MS_REC | MS_PRIVATE)
    libc.mount("tmpfs", _STAGE, "tmpfs", MS_NOSUID | MS_NOEXEC, f"size={root_bytes},mode=755")
    for folder in _FOLDERS:
        os.makedirs(_STAGE + folder, 0o755, exist_ok=True)
    for tree in minimal_cover(trees):
        _bind_read_only(tree)
    for device in DEVICES:
        _bind(device)
    _copy_names()
    _hide_proc()
    libc.mount_setattr(_STAGE, _RDONLY | _NOSUID | _NODEV, recursive=False)
    os.chdir(_STAGE)
    libc.pivot_root(".", ".")
    libc.umount(".", MNT_DETACH)
    os.chdir("/")


def _bind(path: str) -> None:
    target = _STAGE + path
    if os.path.isdir(path):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    libc.mount(path, target, flags=MS_BIND | MS_REC)


def _bind_read_only(path: str) -> None:
    _bind(path)
    libc.mount_setattr(_STAGE + path, _RDONLY | _NOSUID | _NODEV, recursive=True)


def _copy_names() -> None:
    """The links of a merged /usr, and the loader's cache, without which it misses libraries in unusual folders."""
    for link in _LINKS:
        if os.path.islink(link):
            os.symlink(os.readlink(link), _STAGE + link)
    cache = "/etc/ld.so.cache"
    if os.path.exists(cache):
        os.makedirs(_STAGE + "/etc", 0o755)
        with open(cache, "rb") as source, open(_STAGE + cache, "wb") as target:
            target.write(source.read())


def _hide_proc() -> None:
    libc.mount("/proc", _STAGE + PROC_OF_HOST, flags=MS_BIND | MS_REC)
    libc.mount("tmpfs", _STAGE + _HIDDEN, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=000,ro")


def mount_own(spec: Jail, uid: int, gid: int) -> list[str]:
    """Mount what a child's jail has beside the template, owned by its ids. Returns the folders it may write in."""
    if spec.proc:
        libc.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    writable = []
    for path, size, flags in (
        ("/dev/shm", spec.shm_bytes, 0),
        ("/tmp", spec.tmp_bytes, MS_NOEXEC),
        ("/run", spec.run_bytes, MS_NOEXEC),
    ):
        if size:
            options = f"size={size},mode=700,uid={uid},gid={gid}"
            libc.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV | flags, options)
            writable.append(path)
    return writable
