"""Whatever bytes and descriptors a domain puts on its control channel, it alone pays: ended, and named in the log."""

import os
import random
import signal
import socket
from collections.abc import Callable

import pytest

from kernel.abi import hypercalls as h
from kernel.abi.codec import MAX_PACKET, encode
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.packet import MAX_DESCRIPTORS
from tests.adversaries.puppet import Puppet, sealed_memory

UNKNOWN = 0x7F


def array_of(count: int, item: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


PACKETS = {
    "no msgpack": b"\xc1" * 100,
    "noise": random.Random(1).randbytes(MAX_PACKET),
    "a map": b"\x80",
    "a number": b"\x07",
    "text that is no text": b"\x91\x94\x10\x01\x00\xa2\xff\xff",
    "text that is no text, behind an unknown call": b"\x92\x92\x7f\x01\x94\x10\x01\x00\xa2\xff\xff",
    "an unknown call with text that is no text": b"\x91\x93\x7f\x01\xa2\xff\xff",
    "nested without end": b"\x91" * 65000 + b"\xc0",
    "nested without end in an unknown call": b"\x91\x93\x7f\x01" + b"\x91" * 65000 + b"\xc0",
    "maps nested without end in an unknown call": b"\x91\x93\x7f\x01" + b"\x81\x00" * 32000 + b"\xc0",
    "an array that ends too soon": b"\xdd\xff\xff\xff\xff\x92\x08\x01",
    "bytes behind the batch": b"\x91\x92\x08\x01\x00",
    "65,000 empty messages": array_of(65000, b"\x90"),
    "65,000 nothings": array_of(65000, b"\xc0"),
    "32,000 unknown calls without a number": array_of(32000, b"\x91\x7f"),
    "20,000 unknown calls": array_of(20000, b"\x92\x7f\x01"),
    "20,000 pongs": array_of(20000, b"\x92\x02\x01"),
    "one byte too many": b"\xc6" + (MAX_PACKET - 4).to_bytes(4, "big") + bytes(MAX_PACKET - 4),
    "an empty message": b"\x91\x90",
    "an operation that is text": b"\x91\x92\xa1\x08\x01",
    "an operation that is true": b"\x91\x92\xc3\x01",
    "a known call without its fields": b"\x91\x92\x10\x01",
    "a known call with a field too many": b"\x91\x93\x08\x01\x01",
    "port 0": encode([h.EvtchnClose(request=1, port=0)]),  # type: ignore[arg-type]
    "port 65,536": encode([h.EvtchnClose(request=1, port=65536)]),  # type: ignore[arg-type]
    "reference 0": encode([h.GnttabEnd(request=1, ref=0)]),  # type: ignore[arg-type]
    "reference -1": encode([h.GnttabEnd(request=1, ref=-1)]),  # type: ignore[arg-type]
    "an unknown call without a number": b"\x91\x91\x7f",
    "an unknown call with number -1": b"\x91\x92\x7f\xff",
    "an unknown call with a number of 64 bits": b"\x91\x92\x7f\xcf" + b"\xff" * 8,
    "an unknown call with number true": b"\x91\x92\x7f\xc3",
    "a good call, then one that is none": b"\x92\x92\x08\x01\x91\x08",
    "Started twice": encode([h.Started()]),
    "a successor a hundred times over": encode([h.SchedSoftReset("x")] * 100),
    "detail of 513 characters": encode([h.SchedShutdown(1, ShutdownReason.CRASH, "x" * 513)]),  # type: ignore[arg-type]
    "no call but an upcall": b"\x91\x93\x80\x01\x00",
}


@pytest.mark.parametrize("data", PACKETS.values(), ids=list(PACKETS))
def test_a_packet_that_is_none(calm, data):
    with calm.driver_puppet() as puppet:
        puppet.send(data)
        assert calm.wait_death(puppet).startswith("fault: ")
        assert calm.log.all("domain.faulted", name="puppet-driver", peer=str(puppet.peer))


def with_descriptors(data: bytes, count: int) -> Callable[[Puppet], None]:
    def attack(puppet: Puppet) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        try:
            puppet.send(data, [null] * count)
        finally:
            os.close(null)

    return attack


def send_nothing_with_its_own_channel(puppet: Puppet) -> None:
    puppet.send(b"", [puppet.channel.fileno()])


def grant(puppet: Puppet) -> bytes:
    return encode([h.GnttabGrant(request=1, ref=1, to=puppet.peer, access=h.Access.READ)])  # type: ignore[arg-type]


def send_a_grant_of_nothing(puppet: Puppet) -> None:
    puppet.send(grant(puppet))


def take_a_port_and_break_the_abi(puppet: Puppet) -> None:
    """What the first calls of the packet hand out must not be left open for the last one's sake."""
    calls = [
        h.EvtchnAllocUnbound(1, 1, puppet.peer, h.ChannelKind.MESSAGE),  # type: ignore[arg-type]
        h.EvtchnBindInterdomain(2, 2, puppet.peer, 1),  # type: ignore[arg-type]
        h.GnttabGrant(request=3, ref=1, to=puppet.peer, access=h.Access.READ),  # type: ignore[arg-type]
        h.GnttabMap(request=4, owner=puppet.peer, ref=1, access=h.Access.READ),  # type: ignore[arg-type]
        h.Started(),
    ]
    with sealed_memory() as memory:
        puppet.send(encode(calls), [memory])


def close_the_channel_and_live_on(puppet: Puppet) -> None:
    os.kill(puppet.pid, signal.SIGUSR1)
    puppet.channel.shutdown(socket.SHUT_RDWR)


ATTACKS: dict[str, Callable[[Puppet], None]] = {
    "a descriptor too many": with_descriptors(encode([h.Pong(1)]), 1),
    "as many descriptors as a packet takes": with_descriptors(encode([h.Pong(1)]), MAX_DESCRIPTORS),
    "more descriptors than a packet takes": with_descriptors(encode([h.Pong(1)]), MAX_DESCRIPTORS + 1),
    "as many descriptors as Linux takes": with_descriptors(encode([h.Pong(1)]), 253),
    "no packet, but descriptors": with_descriptors(b"\xc1", 64),
    "a grant of nothing": send_a_grant_of_nothing,
    "a port taken, then the ABI broken": take_a_port_and_break_the_abi,
}

CLOSINGS: dict[str, Callable[[Puppet], None]] = {
    "nothing": lambda puppet: puppet.send(b""),
    "nothing, and its own channel": send_nothing_with_its_own_channel,
    "the channel closed, and life goes on": close_the_channel_and_live_on,
}
"""What looks like the end of the channel. A domain has a moment then, to end by itself."""


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_descriptors_that_do_not_belong_to_the_packet(calm, attack):
    for _ in range(5):
        with calm.driver_puppet() as puppet:
            attack(puppet)
            assert calm.wait_death(puppet).startswith("fault: ")
            assert calm.log.all("domain.faulted", name="puppet-driver", peer=str(puppet.peer))


@pytest.mark.parametrize("attack", CLOSINGS.values(), ids=list(CLOSINGS))
def test_a_channel_that_ends_before_its_domain(calm, attack):
    with calm.driver_puppet() as puppet:
        attack(puppet)
        assert calm.wait_death(puppet) == "fault: closed its control channel and lives on"


def test_a_guest_is_ended_for_it_as_a_driver_is(calm):
    since = calm.log.mark()
    with calm.guest_puppet() as puppet:
        puppet.send(b"\xc1")
        assert calm.wait_death(puppet) == "fault: a packet that is no batch of messages"
        assert calm.log.wait("guest.ended", since, name=puppet.name)["reason"] == "crash"


def test_what_follows_a_packet_that_breaks_the_abi_is_not_looked_at(calm):
    """Else a domain could have all that it has sent looked at, even after its end."""
    with calm.driver_puppet() as puppet:
        packets = 0
        try:
            for _ in range(100):
                puppet.send(PACKETS["65,000 empty messages"], deadline_s=0.5)
                packets += 1
        except (OSError, TimeoutError):
            pass
        assert packets > 1
        calm.wait_death(puppet)
    assert not calm.log.all("domain.last_words_unreadable", peer=str(puppet.peer))
