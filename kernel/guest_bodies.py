"""What an incarnation of a guest is made of, for each type of guest."""

from collections.abc import Sequence

import msgspec

from kernel.abi.guest_config import MIB, GuestConfig
from kernel.abi.roles import GuestStart, GuestVbd, NativeStart
from kernel.abi.spawn import Jail
from kernel.boot_files import open_boot_files, open_program, read_lpj
from kernel.lifetimes import Body
from kernel.machine import Guest, Machine
from kernel.manifest import GuestManifest, NativeManifest, parse_cpus

__all__ = ["body_of", "manifest_of"]

GUEST_OVERHEAD_BYTES = 64 * MIB
"""Of /dev/shm beyond a PV guest's memory: what UML keeps of its own in the file that is its memory."""

NATIVE_OVERHEAD_BYTES = 128 * MIB
"""Of address space beyond a native guest's memory: an idle one maps 40 MiB, and its first thread 72 more."""

NATIVE_RINGS_BYTES = 64 * MIB
"""The same for each disk: 12 MiB for a ring, of which there are five when a driver dies."""


def manifest_of(machine: Machine, config: GuestConfig) -> GuestManifest | NativeManifest:
    """The part of the boot manifest that says how guests of this type are run."""
    return machine.manifest.native if config.type == "native" else machine.manifest.guests


def body_of(machine: Machine, guest: Guest) -> Body:
    """For the next incarnation. Its files are opened anew: a mended one counts at the next reboot. Refuses those that
    cannot be had."""
    vbds = [
        GuestVbd(vbd.handle, vbd.vdev, vbd.sectors, vbd.read_only)
        for vbd in machine.vbds.of_guest(guest.record.domid)
    ]
    if guest.config.type == "native":
        return _native(machine.manifest.native, guest.config, vbds)
    return _pv(machine.manifest.guests, guest, vbds)


def _pv(manifest: GuestManifest, guest: Guest, vbds: list[GuestVbd]) -> Body:
    start = GuestStart(guest.config, vbds, guest.cpus[0], read_lpj(manifest), str(guest.folder or ""))
    descriptors = open_boot_files(manifest, guest.config)
    memory_bytes = guest.config.memory * MIB
    jail = Jail(
        kind="guest",
        proc=True,
        shm_bytes=memory_bytes + GUEST_OVERHEAD_BYTES,
        tmp_bytes=16 * MIB,
        run_bytes=MIB,
        nofile=4096,
        nproc=4096,
    )
    return Body(manifest.role, jail, msgspec.msgpack.encode(start), descriptors, manifest.heartbeat, console=True)


def _native(manifest: NativeManifest, config: GuestConfig, vbds: Sequence[GuestVbd]) -> Body:
    """The jail of a driver: a program has no file system to write to, and the descriptors that it was given."""
    start = msgspec.msgpack.encode(NativeStart(config, list(vbds)))
    memory_bytes = config.memory * MIB + NATIVE_OVERHEAD_BYTES + len(vbds) * NATIVE_RINGS_BYTES
    jail = Jail(
        kind="native",
        memory_bytes=memory_bytes,
        cpus=parse_cpus(config.cpus) if config.cpus else (),
        nofile=1024,
    )
    return Body(manifest.role, jail, start, {"program": open_program(config)}, manifest.heartbeat, console=True)
