"""Dom0's own event-channel ports."""

import contextlib

import trio

from domains.runtime.domain import Domain
from kernel.abi.hypercalls import EvtchnClose
from kernel.abi.ids import Port
from kernel.abi.status import Refused, Status

__all__ = ["Ports"]

LAST_PORT = 0xFFFF

CLOSE_S = 2.0
"""How long a close may take, since nothing can cancel it. The hypervisor answers in well under a millisecond."""


class Ports:
    """Which ports of Dom0 are in use. Numbers go round, so that no late word on an old port is taken for a new one."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._used: set[Port] = set()
        self._last = Port(0)

    def take(self) -> Port:
        """A port that nobody uses. Refuses ENOSPC."""
        if len(self._used) == LAST_PORT:
            raise Refused(Status.ENOSPC, f"Dom0 has {LAST_PORT} ports in use: wait for a command to end")
        while True:
            self._last = Port(self._last % LAST_PORT + 1)
            if self._last not in self._used:
                self._used.add(self._last)
                return self._last

    async def close(self, port: Port) -> None:
        """Free a port, also when the caller is cancelled, and whether or not the hypervisor had opened it."""
        with trio.move_on_after(CLOSE_S, shield=True) as scope:
            # Refused: never opened, or gone with its peer. OSError: the hypervisor itself is gone.
            with contextlib.suppress(Refused, OSError):
                await self._domain.call(EvtchnClose, port=port)
        if not scope.cancelled_caught:
            self._used.discard(port)
