"""The block driver, but each of its first incarnations is born with an order to crash at a point of its work.

Options of the manifest: `point`, `count` (which time it strikes) and `generations` (how many incarnations are doomed).
"""

import msgspec
import trio

from domains.runtime.domain import Domain
from drivers.blkback.main import Blkback
from kernel.abi.roles import DriverStart
from kernel.abi.upcalls import Misbehave

__all__ = ["main"]


async def main(domain: Domain) -> None:
    """As `drivers.blkback.main.main`, with the order taken before all others."""
    options = msgspec.msgpack.decode(domain.config, type=DriverStart).options
    async with trio.open_nursery() as nursery:
        backend = Blkback(domain, nursery, faults_allowed=True)
        if domain.peer.generation <= int(options["generations"]):
            await backend.take(Misbehave(f"crash@{options['point']}", int(options["count"])), [])
        await backend.run()
        nursery.cancel_scope.cancel()
