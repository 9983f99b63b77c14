"""One administrator's connection: a request, its answer, the end."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_args

import msgspec
import trio
from msgspec import Struct

from domains.dom0.agents import Agents
from domains.dom0.consoles import Consoles
from domains.dom0.relay import relay
from domains.dom0.tails import Tails
from domains.dom0.toolstack import Toolstack
from domains.runtime.channel import Channel
from kernel.abi import packet
from kernel.abi.admin import AdminConsole, AdminDmesg, AdminExec, AdminRequest, Answer, Part
from kernel.abi.codec import MAX_PACKET, PART_BYTES, Codec, Undecodable, cut, encode
from kernel.abi.console_io import ConsoleAttach
from kernel.abi.ids import Peer
from kernel.abi.log import Log
from kernel.abi.status import DomainFault, Refused, Status

__all__ = ["MAX_SESSIONS", "Sessions"]

MAX_SESSIONS = 64
"""At once. Each holds at most two packets and two descriptors."""

MAX_COMMANDS = 48
"""Of them, commands in guests: these may last, and must leave room for a `tv list`."""

REQUEST_S = 5.0
"""For a connection to say what it wants. `tv` has it ready."""

ANSWER_S = 30.0
"""For an administrator to take the answer."""

_codec = Codec(AdminRequest)
_known_operations = {kind.__struct_config__.tag for kind in get_args(AdminRequest)}


class Sessions:
    """Serves connections, and refuses those beyond its bounds."""

    def __init__(self, toolstack: Toolstack, agents: Agents, consoles: Consoles, tails: Tails, log: Log) -> None:
        self._toolstack = toolstack
        self._agents = agents
        self._consoles = consoles
        self._tails = tails
        self._log = log
        self._free = trio.Semaphore(MAX_SESSIONS)
        self._commands_free = trio.Semaphore(MAX_COMMANDS)

    def start(self, nursery: trio.Nursery, descriptor: int, uid: int) -> None:
        """Serve a connection in `nursery`, or refuse it at once."""
        connection = Channel(descriptor)
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            self._log.warning("admin.refused", uid=uid, sessions=MAX_SESSIONS)
            _refuse(connection, f"{MAX_SESSIONS} requests are being served: ask again when some have ended")
            return
        nursery.start_soon(self._serve, connection, uid)

    async def _serve(self, connection: Channel, uid: int) -> None:
        try:
            await self._answer(connection, uid)
        except Refused as refusal:
            self._log.info("admin.refused", uid=uid, status=refusal.status.name, why=refusal.why)
            await _send_all(connection, [Answer(refusal.status, None, refusal.why)])
        finally:
            connection.close()
            self._free.release()

    async def _answer(self, connection: Channel, uid: int) -> None:
        request = await _request(connection)
        if request is None:
            return
        self._log.info("admin.asked", uid=uid, what=type(request).__name__, name=getattr(request, "name", None))
        match request:
            case AdminExec(name=name):
                await self._execute(connection, name)
            case AdminConsole():
                await self._hand_over(connection, request)
            case AdminDmesg(name=name):
                tail = await self._tails.tail(name and await self._toolstack.name_of(name))
                parts = [Part(tail[at : at + PART_BYTES]) for at in range(0, len(tail), PART_BYTES)]
                await _send_all(connection, [*parts, Answer(Status.OK)])
            case _:
                await self._ask_toolstack(connection, request)

    async def _ask_toolstack(self, connection: Channel, request: AdminRequest) -> None:
        answers: list[Part | Answer] = []

        async def work() -> None:
            try:
                value = await self._toolstack.serve(request)
                parts = cut(value)
                answers.extend(map(Part, parts))
                answers.append(Answer(Status.OK, None if parts else value))
            except Refused as refusal:
                answers.append(Answer(refusal.status, None, refusal.why))

        await _unless_gone(connection, work)
        await _send_all(connection, answers)

    async def _hand_over(self, connection: Channel, request: AdminConsole) -> None:
        """The console driver goes on with the connection. What it has is another descriptor; ours is closed. What a
        guest wrote before it was paused may be read meanwhile, and what is typed waits."""
        guest = await self._toolstack.guest_with_console(request.name)
        if request.generation not in (None, guest.generation):
            raise Refused(Status.ESTALE, f"guest {request.name} has ended, and was started again")
        await self._consoles.prepare(await self._toolstack.console_driver())
        if await _send_all(connection, [Answer(Status.OK, guest.generation)]):
            peer = Peer(guest.domid, guest.generation)
            attach = ConsoleAttach(
                peer, request.keyboard, request.tail, request.at, request.steal, request.watch
            )
            await self._consoles.attach(attach, connection.socket.fileno())

    async def _execute(self, connection: Channel, name: str) -> None:
        try:
            self._commands_free.acquire_nowait()
        except trio.WouldBlock:
            raise Refused(Status.EAGAIN, f"{MAX_COMMANDS} commands are running: ask again when one has ended") from None
        try:
            guest = await self._toolstack.guest_with_agent(name)
            async with self._agents.command(guest) as command:
                if not await _send_all(connection, [Answer(Status.OK)]):
                    return
                ended = await relay(connection, command)
                self._log.info(
                    "command.ended", guest=name, left=ended is None, **(msgspec.structs.asdict(ended) if ended else {})
                )
        finally:
            self._commands_free.release()


async def _request(connection: Channel) -> Any:
    """The connection's one request; None when it ended before it. Refuses what is none."""
    try:
        with trio.fail_after(REQUEST_S):
            data, descriptors = await connection.receive()
        packet.close_all(descriptors)
        if not data:
            return None
        messages = _codec.decode(data)
    except trio.TooSlowError:
        raise Refused(Status.ETIMEDOUT, f"no request came within {REQUEST_S:g} s of the connection") from None
    except (DomainFault, msgspec.DecodeError) as error:
        raise Refused(Status.EINVAL, f"not of the admin protocol ({error}): use the tv of this hypervisor") from None
    except OSError:
        return None
    if descriptors or len(messages) != 1:
        found = f"{len(messages)} messages, {len(descriptors)} descriptors"
        raise Refused(Status.EINVAL, f"{found}: a request is one message and no descriptor")
    if isinstance(messages[0], Undecodable):
        raise _unknown(messages[0])
    return messages[0]


def _unknown(message: Undecodable) -> Refused:
    if message.op in _known_operations:
        return Refused(Status.EINVAL, f"request 0x{message.op:02x}: {message.why}")
    return Refused(Status.ENOSYS, f"no such request ({message.why}): use the tv of this hypervisor")


async def _unless_gone(connection: Channel, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work, and give it up when the administrator leaves. What the hypervisor was asked for goes on."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with contextlib.suppress(OSError, DomainFault):
                packet.close_all((await connection.receive()).descriptors)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await work()
        nursery.cancel_scope.cancel()


async def _send_all(connection: Channel, messages: Sequence[Struct]) -> bool:
    """Send each message in a packet of its own. False when the administrator has left or takes nothing."""
    with trio.move_on_after(ANSWER_S):
        for message in messages:
            data = encode([message])
            if len(data) > MAX_PACKET:
                data = encode([Answer(Status.EIO, None, f"the answer has {len(data)} bytes, a packet {MAX_PACKET}")])
            try:
                await connection.send(data)
            except OSError:
                return False
        return True
    return False


def _refuse(connection: Channel, why: str) -> None:
    with contextlib.suppress(OSError):
        packet.send(connection.socket, encode([Answer(Status.EAGAIN, None, why)]))
    connection.close()
