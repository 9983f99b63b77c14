"""xenstore: the tree in which domains leave word for each other.

Trio takes upcalls; clients are served by a loop of their own, in a thread beside it. All that must outlive us lies in
memory that the hypervisor keeps: the journal of the tree, and each stream's slot.
"""

import mmap
import os
import threading
from functools import partial

import msgspec
import trio

from domains.runtime.domain import Domain, open_domain
from domains.runtime.faults import FaultPoints
from domains.runtime.turn import wait_turn
from drivers.store.journal import Journal
from drivers.store.putting import put
from drivers.store.sessions import Sessions
from drivers.store.store import Store
from kernel.abi.hypercalls import XenstoreClosed
from kernel.abi.packet import close_all
from kernel.abi.roles import DriverStart
from kernel.abi.store_io import STATE_BYTES
from kernel.abi.upcalls import (
    Misbehave,
    ShutdownRequested,
    XenstoreActive,
    XenstoreClient,
    XenstoreDomains,
    XenstoreGone,
    XenstoreIntroduce,
    XenstorePut,
    XenstoreRelease,
    XenstoreStream,
)

__all__ = ["main"]

FEW_RECORDS = 1024
"""That a successor has to do again, beside one for each node: some fifteen milliseconds."""


async def main(domain: Domain) -> None:
    """Serve until the hypervisor ends us."""
    start = msgspec.msgpack.decode(domain.config, type=DriverStart)
    async with trio.open_nursery() as nursery:
        await StoreDriver(domain, nursery, faults_allowed=start.faults).run()
        nursery.cancel_scope.cancel()


class StoreDriver:
    """What the hypervisor says, handed to the loop."""

    def __init__(self, domain: Domain, nursery: trio.Nursery, *, faults_allowed: bool) -> None:
        self._domain = domain
        self._nursery = nursery
        self._faults_allowed = faults_allowed
        self._faults = FaultPoints()
        self._token = trio.lowlevel.current_trio_token()
        self._sessions: Sessions | None = None
        """With `XenstoreActive`, which comes before all that is about it."""

    async def run(self) -> None:
        """Take upcalls until the hypervisor asks for the end."""
        async with open_domain(self._domain, self.beat):
            await self._domain.started()
            async for message, descriptors in self._domain.upcalls:
                try:
                    self._take(message, descriptors)
                finally:
                    close_all(descriptors)
                if isinstance(message, ShutdownRequested):
                    return

    async def beat(self) -> None:
        """Return once the loop has turned, where there is one."""
        if self._sessions is not None:
            await wait_turn(self._sessions.loop.submit)

    def _take(self, message: object, descriptors: list[int]) -> None:
        """Act on one upcall. Descriptors that it keeps are taken out of the list."""
        match message:
            case XenstoreActive():
                self._serve(descriptors[0])
            case Misbehave(what=what, count=count) if self._faults_allowed:
                self._misbehave(what, count)
        sessions = self._sessions
        if sessions is None:
            return
        submit, store = sessions.loop.submit, sessions.store
        match message:
            case XenstoreDomains(peers=peers):
                submit(partial(store.reconcile, {peer.domid: peer.generation for peer in peers}))
            case XenstoreIntroduce(peer=peer):
                submit(partial(store.introduce, peer.domid, peer.generation))
            case XenstoreRelease(peer=peer):
                submit(partial(store.release, peer.domid))
            case XenstorePut(nodes=nodes):
                submit(partial(put, store, nodes))
            case XenstoreClient(connection=connection, domid=domid):
                submit(partial(sessions.open_channel, connection, domid, descriptors.pop()))
            case XenstoreStream(connection=connection):
                submit(partial(sessions.open_stream, connection, descriptors.copy()))
                descriptors.clear()
            case XenstoreGone(connection=connection):
                submit(partial(sessions.end, connection, ""))

    def _serve(self, state: int) -> None:
        """Take up the tree where it was left."""
        store = Store(Journal(memoryview(mmap.mmap(state, STATE_BYTES)), FEW_RECORDS))
        self._sessions = Sessions(store, self._client_left, self._faults)
        self._domain.log.info("store.recovered", nodes=len(store.nodes()), connections=len(store.connections))
        self._sessions.loop.start()

    def _client_left(self, connection: int, why: str) -> None:
        """Called on the loop's thread: hand it over to Trio's."""
        self._token.run_sync_soon(self._nursery.start_soon, self._tell_left, connection, why)

    async def _tell_left(self, connection: int, why: str) -> None:
        if why:
            self._domain.log.warning("client.ended", connection=connection, why=why[:512])
        await self._domain.say(XenstoreClosed(connection))

    def _misbehave(self, what: str, count: int) -> None:
        self._domain.log.warning("fault.armed", what=what, count=count)
        act, _, point = what.partition("@")
        if act == "crash" and point:
            self._faults.arm(point, count)
        elif what == "exit":
            os._exit(0)
        elif what == "hang" and self._sessions is not None:
            self._sessions.loop.submit(_wait_for_ever)


def _wait_for_ever() -> None:
    never = threading.Lock()
    never.acquire()
    never.acquire()
