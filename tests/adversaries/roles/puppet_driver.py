"""A driver domain that does nothing of its own: the test holds its strings, a copy of its control channel.

SIGUSR1 closes its own end of the control channel and lets it live on.
"""

import os
import signal

import trio

from domains.runtime.domain import Domain

__all__ = ["main"]


async def main(domain: Domain) -> None:
    """Say which descriptors the test may copy, then sit still."""
    control, log = domain.descriptors["control"], domain.descriptors["log"]
    signal.signal(signal.SIGUSR1, lambda _number, _frame: os.close(control))
    domain.log.info("puppet.ready", control=control, log=log)
    await domain.started()
    await trio.sleep_forever()
