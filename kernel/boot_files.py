"""The files that a guest boots from: opened by the hypervisor, so that its jail needs no path of the host's."""

import os
import stat
from pathlib import Path

from kernel.abi.cache import cache_root, find_program
from kernel.abi.guest_config import GuestConfig
from kernel.abi.status import Refused, Status
from kernel.manifest import GuestManifest

__all__ = ["cache_path", "drivers_program", "open_boot_files", "open_program", "read_lpj"]

ELF_MAGIC = b"\x7fELF"


def open_boot_files(manifest: GuestManifest, config: GuestConfig) -> dict[str, int]:
    """Descriptors `kernel` and `ramdisk`. Refuses a file that is not there, naming the key and the mend."""
    kernel = _open(
        config.kernel or manifest.kernel, config.name, "kernel", "give the path of a linux.uml, or run make setup"
    )
    try:
        ramdisk = _open(
            config.ramdisk or manifest.ramdisk,
            config.name,
            "ramdisk",
            "give the path of an initramfs, or run make setup",
        )
    except Refused:
        os.close(kernel)
        raise
    if wrong := _wrong_with_kernel(kernel):
        os.close(kernel)
        os.close(ramdisk)
        raise Refused(
            Status.EINVAL,
            f"guest {config.name}: kernel {config.kernel or manifest.kernel} {wrong}: name a linux.uml",
        )
    return {"kernel": kernel, "ramdisk": ramdisk}


def open_program(config: GuestConfig) -> int:
    """A native guest's program. Refuses a file that is not there."""
    return _open(config.program or "", config.name, "program", "give the path of a Python program")


def _wrong_with_kernel(descriptor: int) -> str:
    """Why it could not be run, empty where it could: earlier than the guest's jail finds out, in better words."""
    if not os.access(f"/proc/self/fd/{descriptor}", os.X_OK):
        return "is not executable"
    try:
        return "" if os.pread(descriptor, len(ELF_MAGIC), 0) == ELF_MAGIC else "is no program"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def read_lpj(manifest: GuestManifest) -> int:
    """This host's loops per jiffy as set-up measured them; 0 when it did not, and the guest measures them as it
    boots."""
    try:
        return int(cache_path(manifest.lpj).read_text())
    except (OSError, ValueError):
        return 0


def cache_path(text: str) -> Path:
    """A path of the manifest's, with `~` and `$TRIOVISOR_CACHE` (by default `~/.cache/triovisor`) filled in; of a name
    alone, where that program is."""
    if "/" not in text and (found := find_program(text)) is not None:
        return found
    return Path(text.replace("$TRIOVISOR_CACHE", str(cache_root()))).expanduser()


def drivers_program(text: str) -> str:
    """The path in a driver's jail of a program of the manifest's, "" for none. No link leads to it there: a folder in
    the place of one of the system's links would hide all else behind that."""
    return str(cache_path(text).resolve()) if text else ""


def _open(text: str, guest: str, key: str, mend: str) -> int:
    try:
        path = cache_path(text)
    except RuntimeError as error:
        raise Refused(Status.ENOENT, f"guest {guest}: {key} {text}: {error}: {mend}") from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused(Status.ENOENT, f"guest {guest}: {key} {path} does not exist: {mend}") from error
    except OSError as error:
        raise Refused(
            Status.EPERM, f"guest {guest}: {key} {path}: {error.strerror}: let the hypervisor's user read it"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(Status.EINVAL, f"guest {guest}: {key} {path} is no file: {mend}")
    return descriptor
