"""A domain's access to xenstore: typed calls, watches and transactions, over the death of any number of stores."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from domains.runtime.channel import Channel
from domains.runtime.domain import Domain
from kernel.abi.codec import Codec, encode
from kernel.abi.hypercalls import XenstoreConnect
from kernel.abi.io.xs_wire import PAYLOAD_MAX, Op
from kernel.abi.packet import close_all
from kernel.abi.status import DomainFault, Refused, Status
from kernel.abi.store_io import FromStore, StoreEvent, StoreReply, StoreRequest

__all__ = ["Permission", "Transaction", "Watch", "Xenstore"]

RECONNECT_S = 0.05
"""Until the next try where the hypervisor says that it was too often."""

TRIES = 100
"""Of a transaction. Each conflict is somebody else's success, so that many in a row are a fault of the program."""

T = TypeVar("T")

_codec = Codec(FromStore)


@dataclass(frozen=True, slots=True)
class Permission:
    """What one domain may do with a node: `access` is "n" (nothing), "r", "w" or "b" (both). A node's first one names
    its owner, who may do everything, and what all others may."""

    domid: int
    access: str

    def __str__(self) -> str:
        return f"{self.access}{self.domid}"


class _Nodes:
    """What can be done with nodes, alone or in a transaction. Paths are absolute, or relative to the domain's own
    folder `/local/domain/DOMID`.

    All raise Refused with the status that xenstore names: ENOENT, EACCES, EINVAL for what is no path, ENOSPC for what
    is beyond a quota, E2BIG for what does not fit a message of 4 KiB.
    """

    async def _ask(self, op: Op, body: bytes) -> bytes:
        raise NotImplementedError

    async def read(self, path: str) -> bytes:
        """A node's value."""
        return await self._ask(Op.READ, _text(path))

    async def write(self, path: str, value: bytes | str) -> None:
        """Set a node's value; it and the nodes above it are made where they are not there."""
        raw = value.encode() if isinstance(value, str) else value
        await self._ask(Op.WRITE, _text(path) + raw)

    async def mkdir(self, path: str) -> None:
        """Make a node with no value, if it is not there."""
        await self._ask(Op.MKDIR, _text(path))

    async def rm(self, path: str) -> None:
        """Remove a node and all below it; one that is not there may be removed, if there is one above it."""
        await self._ask(Op.RM, _text(path))

    async def directory(self, path: str) -> list[str]:
        """The names of the nodes right below one."""
        names = await self._ask(Op.DIRECTORY, _text(path))
        return [name.decode() for name in names.split(b"\0") if name]

    async def permissions(self, path: str) -> list[Permission]:
        """Who may do what, the owner first."""
        words = (await self._ask(Op.GET_PERMS, _text(path))).split(b"\0")
        return [Permission(int(word[1:]), word[:1].decode()) for word in words if word]

    async def set_permissions(self, path: str, permissions: Sequence[Permission]) -> None:
        """Say who may do what, the owner first. Only the owner may."""
        await self._ask(Op.SET_PERMS, _text(path) + b"".join(_text(str(each)) for each in permissions))


class Watch:
    """Paths that have changed, at or below the watched one, which comes once at first. A path that changes again before
    it was taken comes once; so may one that did not change, after a store has died."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}
        self._news = trio.Event()

    def _tell(self, path: str) -> None:
        self._paths[path] = None
        self._news.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await self.next()

    async def next(self) -> str:
        """The next path, waited for."""
        while not self._paths:
            self._news = trio.Event()
            await self._news.wait()
        path = next(iter(self._paths))
        del self._paths[path]
        return path


class Xenstore(_Nodes):
    """The store, as one domain reaches it. It connects with the first call.

    A call waits while no store serves; a store that dies meanwhile has done what is asked once, or not at all and its
    successor does it. A call that is cancelled may have been done.
    """

    def __init__(self, domain: Domain, nursery: trio.Nursery) -> None:
        self._domain = domain
        self._nursery = nursery
        self._turn = trio.StrictFIFOLock()
        self._channel: Channel | None = None
        self._number = 0
        self._reply: StoreReply | None = None
        self._news = trio.Event()
        """A reply has come, or the channel has ended."""
        self._seen = 0
        self._watches: dict[str, Watch] = {}
        self._last_token = 0

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Watch]:
        """Hear of changes at a path and below it. "@introduceDomain" and "@releaseDomain" are for Dom0."""
        self._last_token += 1
        token = str(self._last_token)
        watch = self._watches[token] = Watch()
        try:
            await self._ask(Op.WATCH, _text(path) + _text(token))
            yield watch
        finally:
            del self._watches[token]
            with trio.CancelScope(shield=True):
                await self._forget(path, token)

    async def transact(self, work: Callable[["Transaction"], Awaitable[T]]) -> T:
        """Run `work(transaction)` until all that it read and wrote can be taken as one step; its last result.

        Each try begins anew, so `work` should do nothing else. What it raises ends the transaction, with nothing done.
        """
        for _ in range(TRIES):
            transaction = Transaction(self, int((await self._ask(Op.TRANSACTION_START, b"\0")).rstrip(b"\0")))
            try:
                result = await work(transaction)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await transaction.end(commit=False)
                raise
            if await transaction.end(commit=True):
                return result
        raise Refused(Status.EAGAIN, f"a transaction met others {TRIES} times: let it read and write less")

    async def _forget(self, path: str, token: str) -> None:
        try:
            await self._ask(Op.UNWATCH, _text(path) + _text(token))
        except Refused:
            self._domain.log.debug("watch.gone", path=path)

    async def _ask(self, op: Op, body: bytes) -> bytes:
        return await self.ask(op, body, 0)

    async def ask(self, op: Op, body: bytes, transaction: int) -> bytes:
        """One request in the store's own terms: its answer's body. Raises Refused."""
        if len(body) > PAYLOAD_MAX:
            raise Refused(Status.E2BIG, f"xenstore {op.name}: {len(body)} bytes: at most {PAYLOAD_MAX}, path and all")
        async with self._turn:
            self._number += 1
            reply = await self._answered(StoreRequest(self._number, op, transaction, body))
        if reply.op != Op.ERROR:
            return reply.body
        name = reply.body.rstrip(b"\0").decode()
        path = body.partition(b"\0")[0].decode(errors="replace")
        raise Refused(Status.__members__.get(name, Status.EIO), f"xenstore {op.name} {path}: {name}")

    async def _answered(self, request: StoreRequest) -> StoreReply:
        """Asked of one store after the other."""
        while True:
            channel = self._channel or await self._connect()
            try:
                await channel.send(encode([request]))
            except OSError:
                await self._lost(channel)
                continue
            while self._channel is channel:
                if self._reply is not None and self._reply.number == request.number:
                    return self._reply
                self._news = trio.Event()
                await self._news.wait()

    async def _connect(self) -> Channel:
        while True:
            try:
                answer = await self._domain.call(XenstoreConnect)
                break
            except Refused as refusal:
                if refusal.status is not Status.EAGAIN:
                    raise
                await trio.sleep(RECONNECT_S)
        assert answer.descriptor is not None
        channel = self._channel = Channel(answer.descriptor)
        self._nursery.start_soon(self._listen, channel)
        return channel

    async def _listen(self, channel: Channel) -> None:
        """Until the store ends the channel, by its death as a rule. Who watches something needs another at once."""
        try:
            while True:
                data, descriptors = await channel.receive()
                close_all(descriptors)
                if not data:
                    break
                self._take(_codec.decode(data))
        except (OSError, DomainFault) as error:
            self._domain.log.info("store.lost", why=repr(error))
        await self._lost(channel)

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case StoreReply():
                    self._reply = message
                case StoreEvent(number=number, body=body) if number > self._seen:
                    self._seen = number
                    path, token = body.split(b"\0")[:2]
                    if token.decode() in self._watches:
                        self._watches[token.decode()]._tell(path.decode())
        self._news.set()

    async def _lost(self, channel: Channel) -> None:
        if self._channel is not channel:
            return
        self._channel = None
        channel.close()
        self._news.set()
        if self._watches and not self._turn.statistics().owner:
            async with self._turn:
                if self._channel is None:
                    await self._connect()


class Transaction(_Nodes):
    """Nodes as they are for one transaction. See `Xenstore.transact`."""

    def __init__(self, store: Xenstore, number: int) -> None:
        self._store = store
        self._transaction = number

    async def _ask(self, op: Op, body: bytes) -> bytes:
        return await self._store.ask(op, body, self._transaction)

    async def end(self, *, commit: bool) -> bool:
        """True where it was as if nobody else had been there, or nothing was to be done."""
        try:
            await self._ask(Op.TRANSACTION_END, b"T\0" if commit else b"F\0")
        except Refused as refusal:
            if refusal.status is Status.EAGAIN or not commit:
                return False
            raise
        return True


def _text(word: str) -> bytes:
    return word.encode() + b"\0"
