"""Dom0: the first domain, and the only one that may make privileged hypercalls. Hosts the toolstack."""

from contextlib import closing

import trio

from domains.dom0.agents import Agents
from domains.dom0.sessions import Sessions
from domains.dom0.tails import Tails
from domains.dom0.toolstack import Toolstack
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain, open_domain
from kernel.abi import packet
from kernel.abi.upcalls import AdminConnection, DriverGivenUp, EvtchnConnected, PeerDied, PeerReset, ShutdownRequested

__all__ = ["main"]


async def main(domain: Domain) -> None:
    """Serve administrators until the hypervisor asks for the end, or is gone itself."""
    with closing(Channel(domain.descriptors["keeper"])) as keeper:
        async with open_domain(domain), trio.open_nursery() as nursery:
            await _serve(domain, keeper, nursery)
            nursery.cancel_scope.cancel()


async def _serve(domain: Domain, keeper: Channel, nursery: trio.Nursery) -> None:
    agents = Agents(domain, nursery)
    sessions = Sessions(Toolstack(domain), agents, Tails(keeper), domain.log)
    await domain.started()
    await _take_upcalls(domain, agents, sessions, nursery)


async def _take_upcalls(domain: Domain, agents: Agents, sessions: Sessions, nursery: trio.Nursery) -> None:
    """Until `ShutdownRequested`. Never waits for anything else: the answers to hypercalls come behind the upcalls."""
    async for message, descriptors in domain.upcalls:
        match message:
            case AdminConnection(uid=uid):
                sessions.start(nursery, descriptors[0], uid)
            case EvtchnConnected(port=port, peer=peer):
                agents.connected(peer, port, descriptors[0])
            case PeerDied(peer=peer):
                agents.peer_died(peer)
            case PeerReset(peer=peer):
                agents.peer_reset(peer)
            case DriverGivenUp(driver=driver, deaths=deaths, guests=guests):
                domain.log.error("driver.given_up", name=driver, deaths=deaths, guests=list(guests))
            case ShutdownRequested():
                return
            case _:
                packet.close_all(descriptors)
                domain.log.warning("upcall.ignored", what=type(message).__name__)
