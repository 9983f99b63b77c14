"""Carries one command's packets between an administrator and a guest. Trusts neither, and holds one packet each way."""

import contextlib
import select
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from domains.dom0.agents import Command
from domains.runtime.channel import Channel
from kernel.abi import packet
from kernel.abi.codec import Codec, Undecodable, encode
from kernel.abi.guest_io import ExecEnded, ExecInput, ExecMessage, ExecOutput, ExecSignal, ExecStart
from kernel.abi.status import DomainFault

__all__ = ["relay"]

HANGUP_LOOK_S = 0.25
"""Between looks whether the administrator is still there while the command does not take its input: the input that is
queued hides his end from `receive`."""

LAST_WORD_S = 5.0
"""For an administrator to take how the command ended; a slower one sees the connection end instead."""

_codec = Codec(ExecMessage)


async def relay(admin: Channel, command: Command) -> ExecEnded | None:
    """Carry packets until the command has ended, and say how; None when the administrator left before it.

    Whoever breaks the protocol ends the command; the administrator is told who it was.
    """
    return await _Relay(admin, command).run()


class _Relay:
    def __init__(self, admin: Channel, command: Command) -> None:
        self._admin = admin
        self._guest = command.channel
        self._command = command

    async def run(self) -> ExecEnded | None:
        ended: list[ExecEnded | None] = []

        async def carry(direction: Callable[[], Awaitable[ExecEnded | None]]) -> None:
            ended.append(await direction())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, self._to_guest)
            nursery.start_soon(carry, self._to_admin)
        return ended[0] if ended else None

    async def _to_guest(self) -> ExecEnded | None:
        """Until the administrator leaves or breaks the protocol."""
        started = False
        while True:
            try:
                data, messages = await _take(self._admin)
                _check_input(messages, started)
            except OSError:
                return None
            except (DomainFault, msgspec.DecodeError) as error:
                return await self._tell(f"the client broke the exec protocol: {error}")
            if not data or not await self._send_to_guest(data):
                return None
            started = True

    async def _send_to_guest(self, data: bytes) -> bool:
        """False when the administrator has left meanwhile. What a guest that is gone was sent is dropped."""
        while not _hung_up(self._admin):
            with trio.move_on_after(HANGUP_LOOK_S) as waiting, contextlib.suppress(OSError):
                await self._guest.send(data)
            if not waiting.cancelled_caught:
                return True
        return False

    async def _to_admin(self) -> ExecEnded | None:
        """Until the command has ended, or the administrator has left."""
        while True:
            try:
                data, messages = await _take(self._guest)
                _check_output(messages)
            except OSError:
                data, messages = b"", []
            except (DomainFault, msgspec.DecodeError) as error:
                return await self._tell(f"guest {self._command.guest} broke the exec protocol: {error}")
            if not data:
                return await self._tell(await self._command.why_ended())
            try:
                await self._admin.send(data)
            except OSError:
                return None
            if isinstance(messages[-1], ExecEnded):
                return messages[-1]

    async def _tell(self, why: str) -> ExecEnded:
        ended = ExecEnded(why=why[:512])
        with trio.move_on_after(LAST_WORD_S), contextlib.suppress(OSError):
            await self._admin.send(encode([ended]))
        return ended


async def _take(channel: Channel) -> tuple[bytes, list[Any]]:
    """One packet and its messages; nothing at the end. Raises DomainFault or DecodeError where it is not in order."""
    data, descriptors = await channel.receive()
    if descriptors:
        packet.close_all(descriptors)
        raise DomainFault(None, "descriptors came with it")
    if not data:
        return data, []
    messages = _codec.decode(data)
    if not messages:
        raise DomainFault(None, "an empty packet")
    return data, messages


def _check_input(messages: list[Any], started: bool) -> None:
    """`ExecStart` first of all and never again."""
    for number, message in enumerate(messages):
        wanted = ExecInput | ExecSignal if started or number else ExecStart
        if not isinstance(message, wanted):
            raise DomainFault(None, f"{_describe(message)} where it cannot be")


def _check_output(messages: list[Any]) -> None:
    """`ExecEnded` last of all, with a status or a signal."""
    for number, message in enumerate(messages, 1):
        wanted = ExecOutput | ExecEnded if number == len(messages) else ExecOutput
        if not isinstance(message, wanted):
            raise DomainFault(None, f"{_describe(message)} where it cannot be")
        if isinstance(message, ExecEnded) and message.status is not None and message.signal is not None:
            raise DomainFault(None, "ExecEnded with both a status and a signal")


def _describe(message: Any) -> str:
    return f"what is no message ({message.why})" if isinstance(message, Undecodable) else type(message).__name__


def _hung_up(channel: Channel) -> bool:
    """The other end is closed, whatever is still queued here."""
    poll = select.poll()
    poll.register(channel.socket, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
