"""A domain that calls without end: others are heard, nobody else is taken for hung, and the log shows what matters."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi.codec import MAX_BATCH, MAX_PACKET, encode
from kernel.abi.guest_config import Action, ShutdownReason
from kernel.abi.status import Status
from tests.adversaries.lab import Lab
from tests.adversaries.puppet import Puppet
from tests.promises.events import wait_until
from tests.promises.load import verified_load

FLOODS = {
    "refused calls": encode([d.DomctlGetInfo(request=1)] * MAX_BATCH),  # type: ignore[arg-type]
    "unknown calls": b"\xdc" + MAX_BATCH.to_bytes(2, "big") + b"\x92\x7f\x01" * MAX_BATCH,
    "unknown calls of great size": b"\x91\x93\x7f\x01\xc5\xff\x00" + bytes(0xFF00),
    "pongs": encode([h.Pong(0)] * MAX_BATCH),
    "one pong a packet": encode([h.Pong(0)]),
    "grants of nobody": encode([h.GnttabEnd(1, 1)] * MAX_BATCH),  # type: ignore[arg-type]
    "many small things": encode([h.EvtchnClose(1, 1), h.Pong(0), h.Version(1)] * (MAX_BATCH // 3)),  # type: ignore[arg-type]
}

REFUSALS_LOGGED = 60
"""The allowance, and what fills up again within the few seconds of a test."""


FREE_REBOOTS, PAUSES = 3, (0.05, 0.1, 0.2, 0.4)
"""The manifest's own policy: so many reboots are followed at once, the next ones after these pauses."""


class Flood(threading.Thread):
    """Sends one packet again and again, and takes what comes back."""

    def __init__(self, puppet: Puppet, data: bytes) -> None:
        super().__init__()
        self.sent = 0
        self.enough = threading.Event()
        self._puppet = puppet
        self._data = data

    def run(self) -> None:
        while not self.enough.is_set():
            self._puppet.take_all()
            self.sent += self._puppet.send_if_there_is_room(self._data)


@contextmanager
def flooding(puppet: Puppet, data: bytes) -> Iterator[Flood]:
    flood = Flood(puppet, data)
    flood.start()
    try:
        wait_until(lambda: flood.sent > 100 or not flood.is_alive(), "the flood has used up its allowance", 30)
        assert flood.is_alive()
        yield flood
        assert flood.is_alive()
    finally:
        flood.enough.set()
        flood.join()


@pytest.mark.parametrize("data", FLOODS.values(), ids=list(FLOODS))
def test_others_are_heard_and_what_they_do_is_logged(calm: Lab, data):
    assert len(data) <= MAX_PACKET
    since = calm.log.mark()
    with calm.driver_puppet() as puppet, flooding(puppet, data):
        for _ in range(10):
            calm.client.list()
            calm.check_innocents()
        calm.create("passer-by")
        calm.client.destroy("passer-by")
        calm.log.wait("guest.created", since, name="passer-by")
        calm.log.wait("guest.ended", since, name="passer-by")
    assert not calm.log.all("log.dropped", since)
    assert not calm.log.all("log.gap", since)
    assert not calm.log.all("domain.hung", since)
    assert len(calm.log.all("hypercall.refused", since)) <= REFUSALS_LOGGED


def test_refusals_that_are_not_logged_are_counted(calm: Lab):
    since = calm.log.mark()
    with calm.guest_puppet() as puppet:
        refused = 0
        while refused < 5 * MAX_BATCH:
            puppet.take_all()
            refused += MAX_BATCH * puppet.send_if_there_is_room(FLOODS["refused calls"])

        def unlogged() -> int:
            assert puppet.status(d.SysctlInfo) is Status.EPERM
            nonlocal refused
            refused += 1
            lines = calm.log.all("hypercall.refused", since, peer=str(puppet.peer))
            return sum(line["unlogged"] + 1 for line in lines)

        wait_until(lambda: unlogged() >= 5 * MAX_BATCH, "the next line counts those before it")
        assert unlogged() <= refused


def test_a_guest_under_load_does_not_notice_two_floods(calm: Lab):
    refused, unknown = FLOODS["refused calls"], FLOODS["unknown calls"]
    with (
        calm.driver_puppet() as driver,
        calm.guest_puppet() as guest,
        verified_load(calm.client, "innocent"),
        flooding(driver, refused),
        flooding(guest, unknown),
    ):
        for _ in range(20):
            calm.client.list()


def test_a_guest_that_reboots_without_end_is_made_to_wait(calm: Lab):
    """Each reboot is a clone, a log file and news for its backends."""
    since = calm.log.mark()
    puppet_name = "puppet-guest"
    with calm.guest_puppet(on_crash=Action.RESTART) as first:
        puppet: Puppet | None = first
        deadline_reached = threading.Event()
        timer = threading.Timer(3.0, deadline_reached.set)
        timer.start()
        while not deadline_reached.is_set():
            here = calm.log.mark()
            assert puppet is not None
            puppet.send(encode([h.SchedShutdown(1, ShutdownReason.REBOOT, "again")]))  # type: ignore[arg-type]
            puppet.kill()
            puppet.close()
            puppet = calm.puppet(puppet_name, here)
        timer.cancel()
        assert puppet is not None
        puppet.close()
    reboots = calm.log.all("guest.ended", since, name=puppet_name, reason="reboot")
    births = calm.log.all("domain.cloned", since, name=puppet_name)[1:]
    assert 3 <= len(reboots) <= 12
    waited_s = [(birth["ns"] - reboot["ns"]) / 1e9 for reboot, birth in zip(reboots, births, strict=False)]
    assert all(waited >= pause for waited, pause in zip(waited_s[FREE_REBOOTS:], PAUSES, strict=False)), waited_s
