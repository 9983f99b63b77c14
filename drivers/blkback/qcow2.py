"""The block back end of images in qcow2. What reads them is QEMU's storage daemon, one for each vbd."""

import os
from functools import partial

import msgspec
import trio

from domains.runtime.domain import Domain
from drivers.blkback.daemon import DaemonFailed, ImageRefused
from drivers.blkback.loop import Opener
from drivers.blkback.main import Blkback, spare_address_space
from drivers.blkback.overlay import Files, Overlay, Report, probe
from kernel.abi.hypercalls import ImageProbed
from kernel.abi.ids import VbdHandle
from kernel.abi.roles import DriverStart
from kernel.abi.upcalls import VbdAttached

__all__ = ["main"]

PROBES = 4
"""At once. Each is a process."""

MAX_WHY = 400


async def main(domain: Domain) -> None:
    """Serve until the hypervisor ends us."""
    spare_address_space()
    start = msgspec.msgpack.decode(domain.config, type=DriverStart)
    async with trio.open_nursery() as nursery:
        overlays = _Overlays(domain, start.program)
        backend = Blkback(domain, nursery, faults_allowed=start.faults, formatted=overlays)
        nursery.start_soon(overlays.fail_when_one_does)
        await backend.run()
        nursery.cancel_scope.cancel()


class _Overlays:
    """Opens images. When a daemon fails this process does: its successor has descriptors of its own, and so misses no
    write-back error that was told to those of a daemon's before."""

    def __init__(self, domain: Domain, program: str) -> None:
        self._domain = domain
        self._program = program
        self._beneath: dict[VbdHandle, int] = {}
        self._probes = trio.CapacityLimiter(PROBES)
        self._token = trio.lowlevel.current_trio_token()
        self._failures, self._failed = trio.open_memory_channel[tuple[VbdHandle, str]](1)

    def stands_on(self, handle: VbdHandle, backing: int) -> None:
        """As `Formatted` has it. The image follows at once."""
        self._forget(handle)
        self._beneath[handle] = backing

    def opener(self, vbd: VbdAttached, image: int) -> Opener:
        """As `Formatted` has it."""
        handle = vbd.handle
        files = Files(image, self._beneath.pop(handle, None), vbd.read_only)
        refused, failed = partial(self._soon, self._say_refused, handle), partial(self._soon, self._fail, handle)
        return lambda done: Overlay(self._program, files, Report(done, refused, failed))

    async def probe(self, number: int, image: int) -> None:
        """As `Formatted` has it."""
        answer = await trio.to_thread.run_sync(_probe, self._program, number, image, limiter=self._probes)
        await self._domain.say(answer)

    async def fail_when_one_does(self) -> None:
        """Raises DaemonFailed."""
        async for handle, why in self._failed:
            self._domain.log.error("daemon.failed", handle=handle, why=why)
            raise DaemonFailed(f"vbd {handle}: {why}")

    def _forget(self, handle: VbdHandle) -> None:
        """What came for an image that then could not be opened."""
        if handle in self._beneath:
            os.close(self._beneath.pop(handle))

    def _soon(self, act: object, handle: VbdHandle, why: str) -> None:
        """From an overlay's thread."""
        self._token.run_sync_soon(act, handle, why)  # type: ignore[arg-type]

    def _say_refused(self, handle: VbdHandle, why: str) -> None:
        self._domain.log.error("image.refused", handle=handle, why=why)

    def _fail(self, handle: VbdHandle, why: str) -> None:
        try:
            self._failures.send_nowait((handle, why))
        except trio.WouldBlock:
            return  # one is enough


def _probe(program: str, number: int, image: int) -> ImageProbed:
    try:
        facts = probe(program, image)
    except (ImageRefused, DaemonFailed, OSError) as error:
        return ImageProbed(number, why=str(error)[:MAX_WHY])
    why = f"it {facts.damage}: tv image check tells more, and what mends it" if facts.damage else ""
    return ImageProbed(number, facts.size_bytes, facts.beneath, why)
