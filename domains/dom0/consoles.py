"""The way to the console driver: administrators who want to watch a guest are handed over to it."""

import contextlib

import trio

from domains.dom0.ports import Ports
from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from kernel.abi.codec import encode
from kernel.abi.console_io import CONSOLE_PORT, ConsoleAttach
from kernel.abi.guest_config import DriverInfo
from kernel.abi.hypercalls import EvtchnBindInterdomain
from kernel.abi.ids import Peer, Port
from kernel.abi.status import Refused, Status

__all__ = ["Consoles"]

SEND_S = 1.0
"""For the driver to take an order. One that hangs is replaced in less; who asked asks again."""


class Consoles:
    """One channel to the driver's present incarnation, bound when it is first needed."""

    def __init__(self, domain: Domain, ports: Ports) -> None:
        self._domain = domain
        self._ports = ports
        self._peer: Peer | None = None
        self._port = Port(0)
        self._channel: Channel | None = None
        self._binding = trio.Lock()

    async def prepare(self, driver: DriverInfo) -> None:
        """Have a channel to the driver. Refuses EAGAIN while there is none to be had."""
        async with self._binding:
            await self._bind(Peer(driver.domid, driver.generation))

    async def attach(self, attach: ConsoleAttach, descriptor: int) -> None:
        """Hand a connection over; the descriptor stays the caller's. Where no driver takes it, whoever has the other
        end sees it end, and asks again."""
        channel = self._channel
        if channel is None:
            return
        taken = False
        with trio.move_on_after(SEND_S), contextlib.suppress(OSError, trio.ClosedResourceError):
            await channel.send(encode([attach]), [descriptor])
            taken = True
        async with self._binding:
            if not taken and channel is self._channel:
                await self._let_go()

    async def _bind(self, peer: Peer) -> None:
        if self._channel is not None and self._peer == peer:
            return
        await self._let_go()
        self._peer, self._port = peer, self._ports.take()
        try:
            answer = await self._domain.call(
                EvtchnBindInterdomain, port=self._port, remote=peer, remote_port=Port(CONSOLE_PORT)
            )
        except Refused as refusal:
            await self._let_go()
            raise Refused(Status.EAGAIN, f"no console driver takes orders now ({refusal.why}): try again") from refusal
        assert answer.descriptor is not None
        self._channel = Channel(answer.descriptor)

    async def _let_go(self) -> None:
        """Of a driver's incarnation that is gone."""
        if self._channel is not None:
            self._channel.close()
        if self._peer is not None:
            await self._ports.close(self._port)
        self._peer = self._channel = None
