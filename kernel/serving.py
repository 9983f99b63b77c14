"""Taking what a domain sends on its control channel: bounds, then types, then meaning."""

import os
import time

import msgspec
import trio

from kernel.abi.packet import Packet, close_all
from kernel.abi.status import DomainFault
from kernel.incarnation import end_for_fault
from kernel.machine import Incarnation, Machine

__all__ = ["drain", "serve"]

RECEIVING_S = 60e-6
"""What a packet costs besides acting on it: its system calls, and a turn of Trio's loop."""

REST_S = 0.02
"""Of a domain that has used up its share, at least: one that came a thousand times a second for a little would be in
everybody's way each time."""

CLOSED_GRACE_S = 1.0
"""A domain that closed its control channel is about to end. If it is not, it is ended."""

DRAIN_PACKETS = 64
"""Taken from a domain that is gone: its last words, bounded."""


async def serve(machine: Machine, incarnation: Incarnation) -> None:
    """Take packets until the channel closes or the domain is to end. A packet that breaks the ABI ends it.

    After each packet others have their turn, and a domain that has used up its share of the hypervisor's time waits:
    a flood slows its sender alone. One that does not take its answers is not listened to, pongs included.
    """
    try:
        while not incarnation.ended_for:
            await incarnation.link.flushed()
            packet = await incarnation.link.receive()
            if not packet.data:
                close_all(packet.descriptors)
                await trio.sleep(CLOSED_GRACE_S)
                raise DomainFault(incarnation.peer, "closed its control channel and lives on")
            began_s = time.thread_time()
            _take(machine, incarnation, packet)
            cost_s = RECEIVING_S + time.thread_time() - began_s
            debt_s = incarnation.record.time.spend(cost_s, trio.current_time())
            if debt_s:
                await trio.sleep(max(debt_s, REST_S))
    except DomainFault as fault:
        end_for_fault(machine, incarnation, fault)


def drain(machine: Machine, incarnation: Incarnation) -> None:
    """Take what a domain sent before it ended by itself. What it broke then harms nobody."""
    for _ in range(DRAIN_PACKETS):
        if incarnation.ended_for:
            return
        try:
            packet = incarnation.link.receive_nowait()
            if not packet.data:
                return
            _take(machine, incarnation, packet)
        except (BlockingIOError, OSError):
            return
        except DomainFault as fault:
            machine.log.warning("domain.last_words_unreadable", peer=str(incarnation.peer), what=fault.what)
            return


def _take(machine: Machine, incarnation: Incarnation, packet: Packet) -> None:
    try:
        machine.dispatch(machine, incarnation, packet)
    except msgspec.DecodeError as error:
        raise DomainFault(incarnation.peer, "a packet that is no batch of messages", error=str(error)) from error
    finally:
        for descriptor in packet.descriptors:
            os.close(descriptor)
