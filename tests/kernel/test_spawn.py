"""Zygotes that die between two orders: the next order gets its child all the same."""

import os
import select
import signal
from unittest.mock import Mock

import msgspec
import pytest
import trio

from kernel.abi import packet
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.roles import DriverStart
from kernel.abi.spawn import Identity, Jail
from kernel.spawn import Child, Zygotes

ROLE = "drivers.blkback.main"
CONFIG = msgspec.msgpack.encode(DriverStart(False, {}))
DEADLINE_S = 30


@pytest.mark.parametrize("which", ["the base", "the role's", "both"])
async def test_an_order_finds_zygotes_dead_of_which_nobody_has_heard_yet(which):
    log = Mock()
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            zygotes = Zygotes(nursery, log)
            await zygotes.warm(ROLE)
            base, role = (call.kwargs["pid"] for call in log.info.call_args_list)
            dead = {"the base": {base}, "the role's": {role}, "both": {base, role}}[which]
            _kill_meanwhile(dead)
            for generation in (1, 2):
                _reap(await _order(zygotes, generation))
            _kill_meanwhile({call.kwargs["pid"] for call in log.info.call_args_list} - dead)


def _kill_meanwhile(pids: set[int]) -> None:
    """Without a turn for the task that would hear of it."""
    for pid in pids:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE_S)[0]
        os.close(pidfd)


async def _order(zygotes: Zygotes, generation: int) -> Child:
    ours, theirs = packet.pair()
    reader, writer = os.pipe()
    with ours, theirs:
        identity = Identity("blkback", Peer(DomId(3), Generation(generation)))
        descriptors = {"control": theirs.fileno(), "log": writer}
        order = zygotes.order(ROLE, identity, Jail(kind="driver"), CONFIG, descriptors)
        try:
            return await order.child()
        finally:
            os.close(reader)
            os.close(writer)


def _reap(child: Child) -> None:
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    os.close(child.pidfd)
