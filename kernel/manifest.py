"""The boot manifest: which domains a hypervisor starts, as data. `boot.toml` beside this file is the default."""

import enum
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from kernel.abi.guest_config import Cpus, ImageFormat
from kernel.abi.ids import Name
from kernel.core.restart import RestartPolicy

__all__ = [
    "DEFAULT_MANIFEST",
    "Device",
    "Dom0Manifest",
    "DriverManifest",
    "GuestManifest",
    "Heartbeat",
    "Manifest",
    "ManifestError",
    "NativeManifest",
    "load_manifest",
    "parse_cpus",
]

DEFAULT_MANIFEST = Path(__file__).with_name("boot.toml")

Module = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")]
MemoryMib = Annotated[int, Meta(ge=64, le=1_048_576)]


class ManifestError(Exception):
    """The manifest is wrong: one line with the file, the key and the mend."""


class Heartbeat(Struct, frozen=True, forbid_unknown_fields=True):
    """A domain is asked every `interval_s`, and is hung when it has not answered for `deadline_s`. One that nobody
    wants anything of is asked ever more rarely, down to once in `idle_s`."""

    interval_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.1
    deadline_s: Annotated[float, Meta(ge=0.05, le=600)] = 0.5
    idle_s: Annotated[float, Meta(ge=0.01, le=3600)] = 600.0


class Dom0Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """Dom0. `address_space` in MiB bounds what it can map."""

    role: Module = "domains.dom0.main"
    address_space: MemoryMib = 2048
    heartbeat: Heartbeat = Heartbeat(interval_s=1.0, deadline_s=5.0)
    restart: RestartPolicy = RestartPolicy()


class Device(enum.StrEnum):
    """What a driver domain serves."""

    VBD = "vbd"
    CONSOLE = "console"
    XENSTORE = "xenstore"


class DriverManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A driver domain. With `standby` a second incarnation waits, jailed and with its rings mapped, to be promoted.
    At most one serves the consoles, every guest's, and at most one is the store.

    `address_space` in MiB bounds what it can map, and with it how many vbds a block driver can serve: 13 for each.
    `format`: of the images that it serves. `program`: one that it runs for that, by a path as a guest's kernel has it.
    """

    name: Name
    role: Module
    device: Device = Device.VBD
    standby: bool = True
    cpus: Cpus | None = None
    address_space: MemoryMib = 16384
    heartbeat: Heartbeat = Heartbeat()
    restart: RestartPolicy = RestartPolicy()
    options: dict[str, str | int | float | bool] = {}
    format: ImageFormat = "raw"
    program: str = ""


class GuestManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How PV guests are run. Paths may begin with `~` or `$TRIOVISOR_CACHE`; a name alone is that of a program."""

    role: Module = "domains.guests.main"
    kernel: str = "linux.uml"
    ramdisk: str = "$TRIOVISOR_CACHE/guest/initramfs.cpio"
    lpj: str = "$TRIOVISOR_CACHE/guest/lpj"
    heartbeat: Heartbeat = Heartbeat(interval_s=1.0, deadline_s=5.0, idle_s=8.0)
    restart: RestartPolicy = RestartPolicy(max_deaths=10, window_s=30.0)


class NativeManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """How native guests are run."""

    role: Module = "domains.native.main"
    heartbeat: Heartbeat = Heartbeat(interval_s=1.0, deadline_s=5.0)
    restart: RestartPolicy = RestartPolicy(max_deaths=10, window_s=30.0)


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """All of `boot.toml`. `faults` allows drivers to be told to misbehave."""

    driver: Annotated[list[DriverManifest], Meta(max_length=64)]
    dom0: Dom0Manifest = Dom0Manifest()
    guests: GuestManifest = GuestManifest()
    native: NativeManifest = NativeManifest()
    faults: bool = False
    shutdown_grace_s: Annotated[float, Meta(ge=0, le=600)] = 5.0


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Raises ManifestError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}: give the boot manifest's path with --manifest") from error
    try:
        manifest = msgspec.convert(tomllib.loads(text), Manifest)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ManifestError(f"{path}: {error}: {DEFAULT_MANIFEST} shows every key") from error
    for driver in manifest.driver:
        if driver.format != "raw" and not driver.program:
            mend = f"name what reads {driver.format}, such as /usr/bin/qemu-storage-daemon"
            raise ManifestError(f"{path}: driver {driver.name!r} has no program: {mend}")
    names = [driver.name for driver in manifest.driver] + ["dom0", "hypervisor"]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled:
        raise ManifestError(f"{path}: driver.name = {doubled!r} is taken: each domain has a name of its own")
    consoles = [driver for driver in manifest.driver if driver.device is Device.CONSOLE]
    if len(consoles) > 1 or any(driver.standby for driver in consoles):
        raise ManifestError(f"{path}: driver.device = 'console': one driver at most, with standby = false")
    if sum(driver.device is Device.XENSTORE for driver in manifest.driver) > 1:
        raise ManifestError(f"{path}: driver.device = 'xenstore': one driver at most: there is one store")
    return manifest


def parse_cpus(text: str) -> tuple[int, ...]:
    """`"0,2-3"` → (0, 2, 3)."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))
