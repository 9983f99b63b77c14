"""Taking what a domain sends on its control channel: bounds, then types, then meaning."""

import os

import msgspec
import trio

from kernel.abi.packet import Packet, close_all
from kernel.abi.status import DomainFault
from kernel.incarnation import end_for_fault
from kernel.machine import Incarnation, Machine

__all__ = ["drain", "serve"]

PACKETS_A_TURN = 16
"""Taken from one domain before others have their turn: a flood slows its sender alone."""

CLOSED_GRACE_S = 1.0
"""A domain that closed its control channel is about to end. If it is not, it is ended."""

DRAIN_PACKETS = 64
"""Taken from a domain that is gone: its last words, bounded."""


async def serve(machine: Machine, incarnation: Incarnation) -> None:
    """Take packets until the channel closes. A packet that breaks the ABI ends the domain."""
    try:
        while True:
            for _ in range(PACKETS_A_TURN):
                packet = await incarnation.link.receive()
                if not packet.data:
                    close_all(packet.descriptors)
                    await trio.sleep(CLOSED_GRACE_S)
                    raise DomainFault(incarnation.peer, "closed its control channel and lives on")
                _take(machine, incarnation, packet)
            await trio.lowlevel.checkpoint()
    except DomainFault as fault:
        end_for_fault(machine, incarnation, fault)


def drain(machine: Machine, incarnation: Incarnation) -> None:
    """Take what a domain sent before it ended. What it broke then harms nobody."""
    for _ in range(DRAIN_PACKETS):
        try:
            packet = incarnation.link.receive_nowait()
            if not packet.data:
                return
            _take(machine, incarnation, packet)
        except (BlockingIOError, OSError):
            return
        except DomainFault as fault:
            machine.log.warning("domain.last_words_unreadable", peer=str(incarnation.peer), what=fault.what)


def _take(machine: Machine, incarnation: Incarnation, packet: Packet) -> None:
    try:
        machine.dispatch(machine, incarnation, packet)
    except msgspec.DecodeError as error:
        raise DomainFault(incarnation.peer, "a packet that is no batch of messages", error=str(error)) from error
    finally:
        for descriptor in packet.descriptors:
            os.close(descriptor)
