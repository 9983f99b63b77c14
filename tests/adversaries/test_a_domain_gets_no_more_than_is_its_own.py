"""What a domain may not have is refused with the status that the ABI names, and costs nobody else anything."""

import fcntl
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kernel.abi import domctl as d
from kernel.abi import hypercalls as h
from kernel.abi.codec import encode
from kernel.abi.guest_config import GuestConfig, ShutdownReason
from kernel.abi.ids import ANY_GENERATION, DOM0, HYPERVISOR, DomId, Generation, Peer
from kernel.abi.packet import close_all
from kernel.abi.status import Status
from kernel.abi.upcalls import DESCRIPTORS, BackendOffered, EvtchnConnected, Ping, Reply, VbdRing
from tests.adversaries.lab import MANIFEST, PATIENT, Lab, start_lab
from tests.adversaries.puppet import SEALS, Puppet, sealed_memory
from tests.promises.events import wait_until
from tests.promises.processes import status_of

BLKBACK = DomId(1)
NOBODY = Peer(DomId(0x7000), Generation(1))
READ, WRITE = h.Access.READ, h.Access.READ_WRITE


@pytest.fixture(params=["driver", "guest"])
def puppet(calm: Lab, request) -> Iterator[Puppet]:
    """One that does wrong and lives: at the end it is still there, and is then ended."""
    if request.param == "guest":
        with calm.guest_puppet() as puppet:
            yield puppet
            assert puppet.status(h.Version) is Status.OK
        return
    with calm.driver_puppet() as puppet:
        yield puppet
        assert puppet.status(h.Version) is Status.OK
        puppet.send(b"\xc1")
        calm.wait_death(puppet)


DOM0S_OWN: dict[type, dict[str, Any]] = {
    d.DomctlCreate: {"config": GuestConfig(name="stolen")},
    d.DomctlDestroy: {"domid": 2},
    d.DomctlShutdown: {"domid": 2, "reason": ShutdownReason.POWEROFF},
    d.DomctlGetInfo: {},
    d.DomctlRename: {"domid": 2, "name": "stolen"},
    d.DomctlUpdateConfig: {"domid": 2, "config": GuestConfig(name="stolen")},
    d.DomctlTrigger: {"domid": 2, "trigger": d.Trigger.RESET},
    d.DomctlDumpCore: {"domid": 2},
    d.SysctlInfo: {},
    d.SysctlDrivers: {},
    d.SysctlInject: {"driver": "blkback", "what": "exit"},
    d.SysctlStandby: {"driver": "blkback", "wanted": False},
}


def test_every_privileged_call_is_dom0s_own(calm, puppet):
    since = calm.log.mark()
    for call, fields in DOM0S_OWN.items():
        assert puppet.status(call, **fields) is Status.EPERM
        calm.log.wait("hypercall.refused", since, peer=str(puppet.peer), call=call.__name__, status="EPERM")


def test_unknown_calls_with_a_number_are_refused_one_by_one(puppet):
    for operation in (0x00, 0x05, 0x4F, 0x7F, 0x80, 0xFFFF_FFFF, -1):
        request = puppet.number()
        puppet.send(encode([[operation, request, "x", {}]]))  # type: ignore[list-item]
        reply, _ = puppet.reply_to(request)
        assert reply.status is Status.ENOSYS


PEERS = {
    "itself in no generation": lambda puppet: Peer(puppet.peer.domid, ANY_GENERATION),
    "Dom0 in no generation": lambda _puppet: Peer(DOM0, ANY_GENERATION),
    "a driver in no generation": lambda _puppet: Peer(BLKBACK, ANY_GENERATION),
    "nobody": lambda _puppet: NOBODY,
    "nobody in no generation": lambda _puppet: Peer(NOBODY.domid, ANY_GENERATION),
    "the hypervisor": lambda _puppet: Peer(HYPERVISOR, Generation(1)),
    "a generation to come": lambda _puppet: Peer(BLKBACK, Generation(0xFFFF_FFFF)),
    "its own next generation": lambda puppet: Peer(puppet.peer.domid, Generation(puppet.peer.generation + 1)),
}


@pytest.mark.parametrize("name", PEERS.values(), ids=list(PEERS))
def test_a_peer_that_does_not_live_is_named_in_vain(puppet, name: Callable[[Puppet], Peer]):
    peer = name(puppet)
    gone = (Status.ESTALE, Status.ENOENT, Status.EPERM)
    assert puppet.status(h.EvtchnBindInterdomain, port=1, remote=peer, remote_port=1) in gone
    assert puppet.status(h.GnttabMap, owner=peer, ref=1, access=READ) in gone
    assert puppet.status(h.XenbusConnect, handle=1, backend=peer, out_ref=1, in_ref=2, port=1) in gone
    assert puppet.status(h.XenbusConnected, handle=1, frontend=peer) in gone
    assert puppet.status(h.XenbusFault, handle=1, peer=peer, what="", evidence="") in gone
    assert puppet.status(h.XenbusStalled, handle=1, backend=peer) in gone
    with sealed_memory() as memory:
        assert puppet.status(h.GnttabGrant, [memory], ref=1, to=peer, access=READ) in gone
    if peer.generation != ANY_GENERATION or peer == Peer(NOBODY.domid, ANY_GENERATION):
        assert puppet.status(h.EvtchnAllocUnbound, port=1, remote=peer, kind=h.ChannelKind.MESSAGE) in gone


def innocent(calm: Lab, name: str) -> Peer:
    domain = next(domain for domain in calm.client.list() if domain.name == name)
    return Peer(domain.domid, domain.generation)


def test_no_vbd_of_strangers_is_touched(calm, puppet):
    """Neither accused, nor connected, nor claimed."""
    guest, driver, dom0 = (innocent(calm, name) for name in ("innocent", "blkback", "dom0"))
    refused = (Status.ENOENT, Status.ESTALE, Status.EPERM)
    for peer in (guest, driver, dom0, puppet.peer):
        for handle in (1, 2, 0xFFFF_FFFF):
            assert puppet.status(h.XenbusFault, handle=handle, peer=peer, what="liar", evidence="none") in refused
            assert puppet.status(h.XenbusStalled, handle=handle, backend=peer) in refused
            assert puppet.status(h.XenbusConnected, handle=handle, frontend=peer) in refused
    assert puppet.status(h.XenbusConnect, handle=1, backend=driver, out_ref=1, in_ref=2, port=1) in refused


def test_ports_and_grants_of_strangers_cannot_be_taken(calm, puppet):
    guest, driver, dom0 = (innocent(calm, name) for name in ("innocent", "blkback", "dom0"))
    refused = (Status.ENOENT, Status.EPERM)
    for peer in (guest, driver, dom0):
        for number in (1, 2, 3, 4, 5, 0xFFFF):
            assert puppet.status(h.EvtchnBindInterdomain, port=9, remote=peer, remote_port=number) in refused
            assert puppet.status(h.GnttabMap, owner=peer, ref=number, access=READ) in refused
    for number in (1, 0xFFFF):
        assert puppet.status(h.EvtchnClose, port=number) is (Status.ENOENT)
        assert puppet.status(h.GnttabEnd, ref=number) is (Status.ENOENT)


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


NO_MEMORY: dict[str, Callable[[Puppet], int]] = {
    "a folder": lambda _: os.open("/tmp", os.O_RDONLY),
    "a path": lambda _: os.open("/etc/passwd", os.O_PATH),
    "a file": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "a file on tmpfs": lambda _: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR),
    "a device": lambda _: os.open("/dev/zero", os.O_RDWR),
    "a pipe": lambda _: os.pipe()[0],
    "an event": lambda _: os.eventfd(0),
    "a process": lambda puppet: os.pidfd_open(puppet.pid),
    "its own control channel": lambda puppet: os.dup(puppet.channel.fileno()),
    "an unsealed memfd": lambda _: os.memfd_create("x", os.MFD_ALLOW_SEALING),
    "a memfd that cannot be sealed": lambda _: os.memfd_create("x"),
}


@pytest.mark.parametrize("make", NO_MEMORY.values(), ids=list(NO_MEMORY))
def test_only_sealed_memory_is_granted(puppet, make):
    with opened(make(puppet)) as descriptor:
        assert puppet.status(h.GnttabGrant, [descriptor], ref=1, to=puppet.peer, access=READ) is Status.EINVAL


@pytest.mark.parametrize("seals", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE])
def test_only_memory_that_is_sealed_against_both_shrinking_and_growing_is_granted(puppet, seals):
    with sealed_memory(seals) as memory:
        assert puppet.status(h.GnttabGrant, [memory], ref=1, to=puppet.peer, access=READ) is Status.EINVAL


def test_a_grant_gives_what_it_says_once_to_whom_it_says(calm, puppet):
    with sealed_memory(SEALS) as memory:
        assert puppet.status(h.GnttabGrant, [memory], ref=1, to=puppet.peer, access=READ) is Status.OK
        assert puppet.status(h.GnttabGrant, [memory], ref=1, to=puppet.peer, access=READ) is Status.EEXIST
        assert puppet.status(h.GnttabMap, owner=puppet.peer, ref=1, access=WRITE) is Status.EPERM
        assert puppet.status(h.GnttabMap, owner=puppet.peer, ref=1, access=READ) is Status.OK
        assert puppet.status(h.GnttabMap, owner=puppet.peer, ref=1, access=READ) is Status.EPERM
        driver = innocent(calm, "blkback")
        assert puppet.status(h.GnttabGrant, [memory], ref=2, to=driver, access=WRITE) is Status.OK
        assert puppet.status(h.GnttabMap, owner=puppet.peer, ref=2, access=READ) is Status.EPERM


def test_a_domain_may_speak_with_itself(puppet):
    assert puppet.status(h.EvtchnAllocUnbound, port=1, remote=puppet.peer, kind=h.ChannelKind.DOORBELL) is Status.OK
    assert puppet.status(h.EvtchnBindInterdomain, port=1, remote=puppet.peer, remote_port=1) is Status.EEXIST
    reply, descriptors = puppet.call(h.EvtchnBindInterdomain, port=2, remote=puppet.peer, remote_port=1)
    close_all(descriptors)
    assert reply.status is Status.OK
    assert puppet.wait_upcall(EvtchnConnected).port == 1
    assert puppet.status(h.EvtchnBindInterdomain, port=3, remote=puppet.peer, remote_port=1) is Status.EEXIST
    assert puppet.status(h.EvtchnBindInterdomain, port=3, remote=puppet.peer, remote_port=2) is Status.EEXIST


def test_ports_are_as_many_as_a_domain_may_have(puppet: Puppet):
    def opens(port: int) -> Status:
        return puppet.status(h.EvtchnAllocUnbound, port=port, remote=puppet.peer, kind=h.ChannelKind.MESSAGE)

    assert all(opens(port) is Status.OK for port in range(1, 1025))
    assert opens(0xFFFF) is Status.ENOSPC
    assert puppet.status(h.EvtchnClose, port=7) is Status.OK
    assert opens(0xFFFF) is Status.OK


def test_grants_that_nobody_maps_hold_a_bounded_number_of_the_hypervisors_descriptors(calm: Lab, puppet: Puppet):
    before = calm.descriptors()
    with sealed_memory() as memory:

        def grants(ref: int) -> Status:
            return puppet.status(h.GnttabGrant, [memory], ref=ref, to=puppet.peer, access=READ)

        granted = next(ref for ref in range(1, 3000) if grants(ref) is Status.ENOSPC) - 1
        assert granted >= 2 * 16 * 3, "rings of sixteen disks, for an active backend, a standby and a successor"
        assert calm.descriptors() - before <= granted
        assert granted <= 128
        assert puppet.status(h.GnttabMap, owner=puppet.peer, ref=1, access=READ) is Status.OK
        assert grants(0xFFFF) is Status.OK
        assert puppet.status(h.GnttabEnd, ref=2) is Status.OK
        assert grants(0xFFFE) is Status.OK


def test_everything_that_is_handed_out_in_one_packet_arrives(puppet):
    """More of it than one packet carries."""
    pairs = 100
    calls = [
        call
        for n in range(1, pairs + 1)
        for call in (
            h.EvtchnAllocUnbound(2 * n, n, puppet.peer, h.ChannelKind.MESSAGE),  # type: ignore[arg-type]
            h.EvtchnBindInterdomain(2 * n + 1, 1000 + n, puppet.peer, n),  # type: ignore[arg-type]
        )
    ]
    puppet.send(encode(calls))
    came = 0
    while came < pairs:
        messages, descriptors = puppet.receive()
        close_all(descriptors)
        came += sum(message.descriptors for message in messages if isinstance(message, Reply))
        assert len(descriptors) == sum(
            message.descriptors if isinstance(message, Reply) else DESCRIPTORS.get(type(message), 0)
            for message in messages
        )


def test_a_guest_gives_a_backend_one_ring_and_no_flood_of_them(calm):
    """Each ring is a message to a backend that serves others: it must not be buried under them."""
    with calm.guest_puppet() as puppet:
        offered = puppet.wait_upcall(BackendOffered)
        connect = h.XenbusConnect(0xFFFF, offered.handle, offered.backend, 1, 2, 1)  # type: ignore[arg-type]
        for _ in range(8):
            puppet.send(encode([connect] * 256))
        assert puppet.status(h.Version) is Status.OK
        assert (
            puppet.status(h.XenbusConnect, handle=offered.handle, backend=offered.backend, out_ref=1, in_ref=2, port=1)
            is Status.EEXIST
        )


def test_a_driver_says_once_that_a_ring_is_mapped(calm):
    """Each time is a message to the guest."""
    with calm.driver_puppet() as driver, calm.guest_puppet(backend="puppet-driver") as guest:
        handle = guest.wait_upcall(BackendOffered).handle
        assert (
            guest.status(h.XenbusConnect, handle=handle, backend=driver.peer, out_ref=1, in_ref=2, port=1) is Status.OK
        )
        assert driver.wait_upcall(VbdRing).frontend == guest.peer
        assert driver.status(h.XenbusConnected, handle=handle, frontend=guest.peer) is Status.OK
        for _ in range(8):
            driver.send(encode([h.XenbusConnected(0xFFFF, handle, guest.peer)] * 256))  # type: ignore[arg-type]
        assert driver.status(h.XenbusConnected, handle=handle, frontend=guest.peer) is Status.EEXIST
        assert guest.status(h.Version) is Status.OK


def test_a_driver_that_accuses_its_guest_ends_that_guest_alone(calm):
    since = calm.log.mark()
    with calm.driver_puppet() as driver, calm.guest_puppet(backend="puppet-driver") as guest:
        handle = guest.wait_upcall(BackendOffered).handle
        fields = {"handle": handle, "peer": guest.peer, "what": "liar", "evidence": "x" * 512}
        assert driver.status(h.XenbusFault, **fields) is Status.ENOENT
        guest.status(h.XenbusConnect, handle=handle, backend=driver.peer, out_ref=1, in_ref=2, port=1)
        driver.send(encode([h.XenbusFault(request=driver.number(), **fields) for _ in range(64)]))
        assert calm.wait_death(guest) == "fault: liar"
        assert driver.status(h.XenbusFault, **fields) in (Status.ENOENT, Status.ESTALE)
        accusations = calm.log.all("ring.faulted", since, accused=str(guest.peer))
        assert [accusation["name"] for accusation in accusations] == ["puppet-driver"]


def test_a_guest_that_accuses_one_driver_in_a_flood_ends_it_once(calm):
    since = calm.log.mark()
    with calm.driver_puppet() as driver, calm.guest_puppet(backend="puppet-driver") as guest:
        handle = guest.wait_upcall(BackendOffered).handle
        guest.status(h.XenbusConnect, handle=handle, backend=driver.peer, out_ref=1, in_ref=2, port=1)
        fields = {"handle": handle, "peer": driver.peer, "what": "liar", "evidence": ""}
        guest.send(encode([h.XenbusFault(request=guest.number(), **fields) for _ in range(256)]))
        assert calm.wait_death(driver) == "fault: liar"
        assert len(calm.log.all("ring.faulted", since, accused=str(driver.peer))) == 1
        assert guest.status(h.Version) is Status.OK


def test_a_domain_that_has_said_that_it_ends_and_stays_is_ended(calm):
    since = calm.log.mark()
    with calm.driver_puppet() as puppet:
        calls = [h.SchedShutdown(n, ShutdownReason.CRASH, "x") for n in range(1, 257)]  # type: ignore[arg-type]
        puppet.send(encode(calls))
        assert calm.wait_death(puppet) == "said that it ends, and stayed"
        assert len(calm.log.all("domain.shut_down", since, name="puppet-driver")) == 1


@pytest.fixture(scope="module")
def impatient(tmp_path_factory, tree, images) -> Iterator[Lab]:
    """A hypervisor that takes a puppet for hung that has been silent for a second."""
    soon = MANIFEST.replace(PATIENT, "heartbeat = { interval_s = 0.05, deadline_s = 1.0 }", 1)
    assert soon != MANIFEST
    with start_lab(tmp_path_factory.mktemp("impatient"), tree, images, soon) as started:
        yield started


def pong(puppet: Puppet, error: int) -> None:
    """Answer the next ping, with a number that is so much beside it."""
    puppet.send(encode([h.Pong((puppet.wait_upcall(Ping).sequence + error) & 0xFFFF_FFFF)]))


def answer_for(time_s: float, puppet: Puppet, error: int) -> None:
    end_s = time.monotonic() + time_s
    while time.monotonic() < end_s:
        pong(puppet, error)


def test_a_domain_that_answers_its_pings_lives(impatient):
    with impatient.driver_puppet() as puppet:
        answer_for(3, puppet, 0)
        assert puppet.status(h.Version) is Status.OK


@pytest.mark.parametrize("error", [-1, 1, 0x8000_0000])
def test_a_domain_that_answers_its_pings_with_a_wrong_number_is_silent(impatient, error):
    with impatient.driver_puppet() as puppet:
        pong(puppet, 0)
        with pytest.raises(ConnectionResetError):
            answer_for(3, puppet, error)
        assert impatient.wait_death(puppet) == "hung: silent for 1.0 s"
    impatient.check_innocents()


def test_what_a_domain_said_right_before_it_died_is_heard(calm):
    """The hypervisor is stopped meanwhile, so that it learns of both at once, in whatever order it looks."""
    for _ in range(10):
        with calm.driver_puppet() as puppet:
            os.kill(calm.pid, signal.SIGSTOP)
            try:
                puppet.send(encode([h.SchedShutdown(1, ShutdownReason.CRASH, "last words")]))  # type: ignore[arg-type]
                puppet.kill()
                wait_until(functools.partial(is_dead, puppet.pid), "its end")
            finally:
                os.kill(calm.pid, signal.SIGCONT)
            assert calm.wait_death(puppet) == "last words"


def is_dead(pid: int) -> bool:
    return status_of(pid)["State"].startswith("Z")


def flood(puppet: Puppet, data: bytes) -> None:
    """The same packet again and again, until there is no room for it for a while."""
    for _ in range(10_000):
        puppet.send(data, deadline_s=2.0)


def test_a_domain_that_does_not_take_its_answers_is_not_listened_to(calm):
    """It makes channels with itself and never reads. What it is handed waits in the hypervisor, and must be little."""
    before = calm.descriptors()
    with calm.driver_puppet() as puppet:
        calls = encode([
            call
            for _ in range(60)
            for call in (
                h.EvtchnAllocUnbound(1, 1, puppet.peer, h.ChannelKind.MESSAGE),  # type: ignore[arg-type]
                h.EvtchnBindInterdomain(2, 2, puppet.peer, 1),  # type: ignore[arg-type]
                h.EvtchnClose(3, 1),  # type: ignore[arg-type]
                h.EvtchnClose(4, 2),  # type: ignore[arg-type]
            )
        ])  # fmt: skip
        with pytest.raises(TimeoutError):
            flood(puppet, calls)
        assert calm.descriptors() - before < 200
        calm.check_innocents()
        os.kill(puppet.pid, signal.SIGKILL)
        calm.wait_death(puppet)
