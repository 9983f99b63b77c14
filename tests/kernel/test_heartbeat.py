"""How often a domain is asked for a sign of life: a hypervisor over a clock that the tests turn."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import Mock

import msgspec
import pytest
import trio

from kernel.abi import packet
from kernel.abi.codec import Codec
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.upcalls import DriverGivenUp, Ping, Upcall
from kernel.heartbeat import watch_heartbeat
from kernel.incarnation import post
from kernel.link import Link
from kernel.machine import Incarnation
from kernel.manifest import Heartbeat

SOON_S = 0.5
HEARTBEAT = Heartbeat(interval_s=1.0, deadline_s=5.0, idle_s=100.0)
_codec = Codec(Upcall)


class Watched:
    """A domain that answers each ping at once, and when it was asked."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        ours, self._end = packet.pair()
        peer = Peer(DomId(3), Generation(1))
        self.machine = Mock()
        self.incarnation = Incarnation(peer, Mock(), Link(ours), heartbeat, Mock(), trio.current_time())
        self.incarnation.started.set()
        self.asked_s: list[float] = []

    async def answer(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._end)
            for message in _codec.decode(packet.receive(self._end).data):
                if isinstance(message, Ping):
                    self.asked_s.append(trio.current_time())
                    self.incarnation.ponged.set()

    def close(self) -> None:
        self.incarnation.link.close()
        self._end.close()

    def stir(self) -> None:
        post(self.machine, self.incarnation, DriverGivenUp("disk", 1, ()))

    def intervals_s(self) -> list[float]:
        return [round(b - a, 3) for a, b in zip(self.asked_s, self.asked_s[1:], strict=False)]


@asynccontextmanager
async def watched(heartbeat: Heartbeat) -> AsyncIterator[Watched]:
    it = Watched(heartbeat)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.answer)
        nursery.start_soon(watch_heartbeat, it.machine, it.incarnation)
        yield it
        nursery.cancel_scope.cancel()
    it.close()


async def test_a_domain_of_which_nobody_wants_anything_is_asked_ever_more_rarely(autojump_clock):
    async with watched(HEARTBEAT) as it:
        await trio.sleep(500)
    assert it.intervals_s()[:7] == [1, 4, 16, 64, 100, 100, 100]


async def test_a_domain_that_is_wanted_is_asked_at_every_interval_however_often_it_is_wanted(autojump_clock):
    async with watched(HEARTBEAT) as it:
        while trio.current_time() < it.incarnation.born_s + 50:
            it.stir()
            await trio.sleep(0.1)
    assert all(1 <= interval <= 1.1 for interval in it.intervals_s())
    assert len(it.asked_s) >= 45


async def test_an_idle_domain_is_asked_soon_after_something_is_wanted_of_it(autojump_clock):
    async with watched(HEARTBEAT) as it:
        await trio.sleep(150)
        assert trio.current_time() - it.asked_s[-1] > SOON_S
        asked = len(it.asked_s)
        it.stir()
        await trio.sleep(SOON_S)
        assert len(it.asked_s) == asked + 1
        await trio.sleep(30)
    assert it.intervals_s()[asked:] == [1, 4, 16]


async def test_no_interval_is_shorter_than_the_one_for_busy_domains(autojump_clock):
    async with watched(Heartbeat(interval_s=60.0, deadline_s=600.0, idle_s=1.0)) as it:
        await trio.sleep(1000)
    assert set(it.intervals_s()) == {60}


def test_an_idle_interval_is_a_time():
    with pytest.raises(msgspec.ValidationError, match="idle_s"):
        msgspec.convert({"idle_s": math.inf}, Heartbeat)
