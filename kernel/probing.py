"""Images that are not raw, looked into before a guest is made: in the jail of the driver that would serve them, since
the hypervisor believes no image a word."""

import os
from pathlib import Path

import trio

from kernel.abi.guest_config import DiskConfig
from kernel.abi.hypercalls import ImageProbed
from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import ImageProbe
from kernel.images import SECTOR_BYTES, Image
from kernel.incarnation import post
from kernel.machine import DriverDomain, Incarnation, Machine, Probe

__all__ = ["answered", "look_into"]

PROBE_S = 15.0
"""For an answer. It takes some ten milliseconds, or a restart of the driver more."""

PROBE_LOOK_S = 0.02
"""Between two looks whether an incarnation serves."""


async def look_into(machine: Machine, domain: DriverDomain, disk: DiskConfig, image: Image) -> None:
    """Find the disk's size, and see that the image stands on what the configuration says. Refuses what cannot be served
    (EINVAL), and where the driver does not answer (ETIMEDOUT)."""
    with trio.move_on_after(PROBE_S):
        found = await _ask(machine, domain, image)
        if found.why:
            raise Refused(Status.EINVAL, f"image {disk.target}: {_printable(found.why)}")
        _check_backing(disk, found.backing)
        image.sectors = found.size_bytes // SECTOR_BYTES
        if not image.sectors:
            raise Refused(Status.EINVAL, f"image {disk.target} is a disk of {found.size_bytes} bytes: give it a sector")
        return
    name = domain.record.name
    raise Refused(Status.ETIMEDOUT, f"image {disk.target}: {name} told nothing of it for {PROBE_S:g} s: see its log")


def answered(machine: Machine, caller: Incarnation, call: ImageProbed) -> None:
    """`ImageProbed`. From anybody else than who was asked it is nothing, and the first word counts."""
    probe = machine.probes.get(call.probe)
    if probe is not None and probe.asked == caller.peer and probe.answer is None:
        probe.answer = call
        probe.answered.set()


async def _ask(machine: Machine, domain: DriverDomain, image: Image) -> ImageProbed:
    """Ask whoever serves, and its successor if that dies over it."""
    while True:
        incarnation = machine.alive.get(domain.driver.active) if domain.driver.active else None
        if incarnation is None:
            await trio.sleep(PROBE_LOOK_S)
            continue
        machine.last_probe = number = machine.last_probe + 1 & 0xFFFF_FFFF
        probe = machine.probes[number] = Probe(incarnation.peer)
        try:
            post(machine, incarnation, ImageProbe(number), descriptors=(image.open_to_look(),))
            async with trio.open_nursery() as nursery:

                async def first(event: trio.Event) -> None:
                    await event.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(first, probe.answered)
                nursery.start_soon(first, incarnation.gone)
        finally:
            del machine.probes[number]
        if probe.answer is not None:
            return probe.answer


def _printable(text: str) -> str:
    """A stranger's words, which may reach a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _check_backing(disk: DiskConfig, found: str) -> None:
    """Compares names, and touches no file for it: what an image says may lead anywhere."""
    if not found and disk.backing is None:
        return
    if not found:
        raise Refused(Status.EINVAL, f"image {disk.target} stands on no other: leave out backing = {disk.backing!r}")
    stands_on = os.path.normpath(Path(disk.target).parent / found)
    says = f"image {disk.target} stands on {_printable(found)!r}"
    name = _printable(stands_on)
    if disk.backing is None:
        raise Refused(Status.EINVAL, f'{says}: add backing = "{name}" to the disk if its guest may read that')
    if os.path.normpath(disk.backing) != stands_on:
        mend = f'give backing = "{name}", or change the image with qemu-img rebase -u'
        raise Refused(Status.EINVAL, f"{says}, not on {disk.backing}: {mend}")
