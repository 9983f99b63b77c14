"""The role of a guest: a reaper as its first process, beside it the actor as which this one goes on, or the next."""

import msgspec
import trio

from domains.frontends.console_ring import make_out
from domains.guests.actor import Actor
from domains.guests.reaper import become_reaper
from domains.runtime.domain import Domain, open_domain
from kernel.abi.io.ring import Sealed
from kernel.abi.roles import GuestStart

__all__ = ["main", "prepare"]


_console_out: list[Sealed] = []
"""The memory of the console's ring, mapped before the first fork: it is sealed, so that no process can map it for
writing any more, and each actor inherits the mapping."""


def prepare(descriptors: dict[str, int], config: bytes) -> int:
    """Fork: the parent stays as the reaper, the child has what that keeps for it. How many actors there were before."""
    _console_out.append(make_out())
    return become_reaper(descriptors, msgspec.msgpack.decode(config, type=GuestStart))


async def main(domain: Domain) -> None:
    """Run the guest to its end."""
    start = msgspec.msgpack.decode(domain.config, type=GuestStart)
    async with trio.open_nursery() as nursery:
        actor = Actor(domain, nursery, start, _console_out[0])
        async with open_domain(domain, actor.beat):
            await actor.run()
        nursery.cancel_scope.cancel()
