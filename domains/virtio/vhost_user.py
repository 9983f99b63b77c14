"""The vhost-user protocol from the back end's side (QEMU, `docs/interop/vhost-user.rst`), for a device of one queue.

`Session` decides: messages in, replies and events out, no socket. Whatever the front end sends that the protocol does
not allow raises `ProtocolError` and ends the connection; the front end is the guest's own process, so nobody else is
concerned.

What a session has come to is a few numbers (`Session.state`), from which a successor of the process that had it goes on
(`Session.resume`), with the descriptors that the front end sent last of each kind.
"""

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from domains.virtio.queue import QueueLayout

__all__ = [
    "HEADER", "MAX_DESCRIPTORS", "MAX_PAYLOAD", "WITH_DESCRIPTORS", "BaseAsked", "CallChanged", "Code", "Event",
    "MemoryMapped", "Message", "ProtocolError", "QueueResumed", "QueueStarted", "QueueStopped", "Reply", "Session",
    "handed_on",
]  # fmt: skip

VIRTIO_F_INDIRECT_DESC = 1 << 28
VIRTIO_F_EVENT_IDX = 1 << 29
VIRTIO_F_VERSION_1 = 1 << 32
_F_PROTOCOL_FEATURES = 1 << 30

PROTOCOL_FEATURES = 0x229
"""MQ (which User-Mode Linux ignores), REPLY_ACK, SLAVE_REQ, CONFIG. Without CONFIG its probe fails, without SLAVE_REQ
the disk does. Never INBAND_NOTIFICATIONS: with it a back end that stalls stops the guest's clock."""

HEADER = struct.Struct("<III")
_VERSION, _VERSION_MASK, _IS_REPLY, _NEEDS_REPLY = 1, 3, 1 << 2, 1 << 3
_NO_DESCRIPTOR = 1 << 8
_MAX_CONFIG = 256
MAX_DESCRIPTORS = 8
_U64, _VRING_STATE, _VRING_ADDRESS = struct.Struct("<Q"), struct.Struct("<II"), struct.Struct("<IIQQQQ")
_REGIONS, _REGION, _CONFIG = struct.Struct("<II"), struct.Struct("<QQQQ"), struct.Struct("<III")
MAX_PAYLOAD = _CONFIG.size + _MAX_CONFIG
"""Of the longest message, GET_CONFIG."""


class ProtocolError(Exception):
    """The front end broke the protocol. `evidence` is what it sent, in words."""

    def __init__(self, what: str, evidence: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


class Code(enum.IntEnum):
    """Front-end message types; what is not here is not supported and ends the connection."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25


_PAYLOADS = {
    Code.GET_FEATURES: 0, Code.SET_FEATURES: 8, Code.SET_OWNER: 0, Code.RESET_OWNER: 0, Code.SET_VRING_NUM: 8,
    Code.SET_VRING_ADDR: 40, Code.SET_VRING_BASE: 8, Code.GET_VRING_BASE: 8, Code.SET_VRING_KICK: 8,
    Code.SET_VRING_CALL: 8, Code.SET_VRING_ERR: 8, Code.GET_PROTOCOL_FEATURES: 0, Code.SET_PROTOCOL_FEATURES: 8,
    Code.GET_QUEUE_NUM: 0, Code.SET_VRING_ENABLE: 8, Code.SET_BACKEND_REQ_FD: 0,
}  # fmt: skip
"""Bytes of payload; the others' depend on their contents."""

WITH_DESCRIPTORS = frozenset(
    {Code.SET_MEM_TABLE, Code.SET_VRING_KICK, Code.SET_VRING_CALL, Code.SET_VRING_ERR, Code.SET_BACKEND_REQ_FD}
)
"""The messages that carry descriptors; of each kind the last one's count."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came. Whoever handles it owns the descriptors."""

    code: int
    flags: int
    payload: bytes
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes to send back."""

    data: bytes


@dataclass(frozen=True, slots=True)
class MemoryMapped:
    """Guest memory from address `base` on is `descriptor` from `offset` on; the receiver closes the descriptor."""

    descriptor: int
    base: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class QueueStarted:
    """Serve the queue. `kick` is readable when there is something to do; the receiver closes it."""

    layout: QueueLayout
    next_available: int
    event_index: bool
    kick: int


@dataclass(frozen=True, slots=True)
class QueueResumed:
    """Serve the queue that another process has served, from where it was."""

    layout: QueueLayout
    event_index: bool
    kick: int


@dataclass(frozen=True, slots=True)
class QueueStopped:
    """Touch the queue no more."""


@dataclass(frozen=True, slots=True)
class CallChanged:
    """Signal the guest by writing 8 bytes to `call`, the receiver's to close; -1: not at all."""

    call: int


@dataclass(frozen=True, slots=True)
class BaseAsked:
    """Answer with `Session.base_reply`, after `QueueStopped`."""


Event = Reply | MemoryMapped | QueueStarted | QueueResumed | QueueStopped | CallChanged | BaseAsked


class _State(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All that a session has come to. `region`: user address, size, guest address, offset in the file. `served`: the
    queue that runs, as `QueueLayout` has it, and whether with event index. `kick_waits`: one came for the next."""

    features: int
    region: tuple[int, int, int, int] | None
    size: int
    base: int
    addresses: tuple[int, int, int] | None
    enabled: bool
    served: tuple[int, int, int, int, bool] | None
    kick_waits: bool
    stopped_at: int


class Session:
    """One front end's state. Feed it whole messages in order; do what its events say, in order."""

    def __init__(self, features: int, config: bytes) -> None:
        self._offered = (
            features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | _F_PROTOCOL_FEATURES
        )
        self._config = config
        self._features = 0
        self._region: tuple[int, int, int, int] | None = None
        self._size = 0
        self._base = 0
        self._addresses: tuple[int, int, int] | None = None
        self._kick = -1
        self._enabled = False
        self._served: tuple[int, int, int, int, bool] | None = None
        self.stopped_at = 0
        """Index of the first buffer that was not taken of the queue that was stopped last."""

    def state(self) -> bytes:
        """What `resume` goes on from."""
        return msgspec.msgpack.encode(
            _State(
                self._features, self._region, self._size, self._base, self._addresses, self._enabled, self._served,
                self._kick >= 0, self.stopped_at,
            )
        )  # fmt: skip

    def resume(self, state: bytes, held: Mapping[int, int]) -> list[Event]:
        """Go on from another session's `state`. `held`: the descriptor that came last with each code; those that no
        event hands on, and that are no `waiting_kick`, are of no use any more."""
        was = msgspec.msgpack.decode(state, type=_State)
        self._features, self._region, self._size, self._base = was.features, was.region, was.size, was.base
        self._addresses, self._enabled, self._served = was.addresses, was.enabled, was.served
        self.stopped_at = was.stopped_at
        events: list[Event] = []
        if was.region is not None:
            _, size, base, offset = was.region
            events.append(MemoryMapped(held[Code.SET_MEM_TABLE], base, size, offset))
        if Code.SET_VRING_CALL in held:
            events.append(CallChanged(held[Code.SET_VRING_CALL]))
        if was.kick_waits:
            self._kick = held[Code.SET_VRING_KICK]
        if was.served is not None:
            *layout, event_index = was.served
            events.append(QueueResumed(QueueLayout(*layout), event_index, held[Code.SET_VRING_KICK]))
        return events

    def take(self, message: Message) -> list[Event]:
        """What follows from one message. Raises ProtocolError; the descriptors are then still the caller's."""
        code = _check(message)
        events = list(self._handle(code, message))
        if message.flags & _NEEDS_REPLY and not any(isinstance(event, Reply | BaseAsked) for event in events):
            events.append(_reply(code, _U64.pack(0)))
        return events

    def _handle(self, code: Code, message: Message) -> Iterator[Event]:
        payload = message.payload
        match code:
            case Code.GET_FEATURES:
                yield _reply(code, _U64.pack(self._offered))
            case Code.SET_FEATURES:
                self._features = _subset(payload, self._offered)
                if not self._features & _F_PROTOCOL_FEATURES:
                    self._enabled = True
            case Code.GET_PROTOCOL_FEATURES:
                yield _reply(code, _U64.pack(PROTOCOL_FEATURES))
            case Code.SET_PROTOCOL_FEATURES:
                _subset(payload, PROTOCOL_FEATURES)
            case Code.GET_QUEUE_NUM:
                yield _reply(code, _U64.pack(1))
            case Code.GET_CONFIG:
                yield self._read_config(payload)
            case Code.SET_MEM_TABLE:
                yield from self._stop()
                yield self._memory(message)
            case Code.SET_OWNER | Code.SET_CONFIG | Code.SET_BACKEND_REQ_FD | Code.SET_VRING_ERR:
                pass
            case Code.RESET_OWNER:
                yield from self._stop()
            case _:
                yield from self._vring(code, message)

    def _vring(self, code: Code, message: Message) -> Iterator[Event]:
        payload = message.payload
        match code:
            case Code.SET_VRING_NUM:
                self._size = _state(payload)
            case Code.SET_VRING_BASE:
                self._base = _state(payload) & 0xFFFF
            case Code.SET_VRING_ADDR:
                yield from self._stop()
                self._addresses = self._offsets(payload)
            case Code.SET_VRING_ENABLE:
                self._enabled = bool(_state(payload))
                yield from self._start() if self._enabled else self._stop()
            case Code.SET_VRING_KICK:
                yield from self._stop()
                self._kick = _descriptor(message)
                if self._kick < 0:
                    raise ProtocolError("a queue without kick descriptor is not supported")
                yield from self._start()
            case Code.SET_VRING_CALL:
                yield CallChanged(_descriptor(message))
            case Code.GET_VRING_BASE:
                _state(payload)
                yield from self._stop()
                yield BaseAsked()

    def base_reply(self) -> Reply:
        """The answer to `BaseAsked`, once `stopped_at` is right."""
        return _reply(Code.GET_VRING_BASE, _VRING_STATE.pack(0, self.stopped_at))

    @property
    def waiting_kick(self) -> int:
        """The kick descriptor of a queue that has not started yet; -1 when there is none."""
        return self._kick

    def _start(self) -> Iterator[Event]:
        if self._served is not None or self._kick < 0 or not self._enabled:
            return
        if self._addresses is None:
            raise ProtocolError("a queue starts without addresses")
        descriptors, used, available = self._addresses
        layout = QueueLayout(self._size, descriptors, available, used)
        kick, self._kick = self._kick, -1
        event_index = bool(self._features & VIRTIO_F_EVENT_IDX)
        self._served = self._size, descriptors, available, used, event_index
        yield QueueStarted(layout, self._base, event_index, kick)

    def _stop(self) -> Iterator[Event]:
        if self._served is not None:
            self._served = None
            yield QueueStopped()

    def _memory(self, message: Message) -> MemoryMapped:
        payload, descriptors = message.payload, message.descriptors
        if len(payload) < _REGIONS.size + _REGION.size:
            raise ProtocolError("memory table too short", f"{len(payload)} bytes")
        regions, _ = _REGIONS.unpack_from(payload)
        if regions != 1 or len(descriptors) != 1:
            raise ProtocolError("one memory region is supported", f"{regions}, {len(descriptors)} descriptors")
        base, size, user_address, offset = _REGION.unpack_from(payload, _REGIONS.size)
        self._region = user_address, size, base, offset
        self._addresses = None
        return MemoryMapped(descriptors[0], base, size, offset)

    def _offsets(self, payload: bytes) -> tuple[int, int, int]:
        index, flags, descriptors, used, available, _ = _VRING_ADDRESS.unpack(payload)
        if index or flags:
            raise ProtocolError("one queue without a log is supported", f"queue {index}, flags {flags:#x}")
        if self._region is None:
            raise ProtocolError("queue addresses before a memory table")
        user_address, size, _, _ = self._region
        for address in (descriptors, used, available):
            if not 0 <= address - user_address < size:
                raise ProtocolError("queue outside memory", f"user address {address:#x}")
        return descriptors - user_address, used - user_address, available - user_address

    def _read_config(self, payload: bytes) -> Reply:
        if len(payload) < _CONFIG.size:
            raise ProtocolError("configuration request too short", f"{len(payload)} bytes")
        offset, size, flags = _CONFIG.unpack_from(payload)
        if offset + size > _MAX_CONFIG or len(payload) != _CONFIG.size + size:
            raise ProtocolError("configuration request out of range", f"{offset}+{size}, {len(payload)} bytes")
        contents = self._config.ljust(_MAX_CONFIG, b"\0")[offset : offset + size]
        return _reply(Code.GET_CONFIG, _CONFIG.pack(offset, size, flags) + contents)


def _check(message: Message) -> Code:
    try:
        code = Code(message.code)
    except ValueError:
        raise ProtocolError("message not supported", f"type {message.code}") from None
    if message.flags & _VERSION_MASK != _VERSION or message.flags & _IS_REPLY:
        raise ProtocolError("wrong flags", f"{code.name}, flags {message.flags:#x}")
    expected = _PAYLOADS.get(code)
    if expected is not None and len(message.payload) != expected:
        raise ProtocolError("payload of a wrong length", f"{code.name}, {len(message.payload)} bytes, not {expected}")
    if message.descriptors and code not in WITH_DESCRIPTORS:
        raise ProtocolError("descriptors where none belong", f"{code.name}, {len(message.descriptors)}")
    return code


def _reply(code: Code, payload: bytes) -> Reply:
    return Reply(HEADER.pack(code, _VERSION | _IS_REPLY, len(payload)) + payload)


def _subset(payload: bytes, offered: int) -> int:
    chosen: int = _U64.unpack(payload)[0]
    if chosen & ~offered:
        raise ProtocolError("features that were not offered", f"{chosen & ~offered:#x}")
    return chosen


def _state(payload: bytes) -> int:
    """The number in a vring state of the only queue."""
    index, number = _VRING_STATE.unpack(payload)
    if index:
        raise ProtocolError("one queue is supported", f"queue {index}")
    return int(number)


def _descriptor(message: Message) -> int:
    """The descriptor of a KICK or CALL for the only queue; -1 where the message says that there is none."""
    (word,) = _U64.unpack(message.payload)
    absent = bool(word & _NO_DESCRIPTOR)
    if word & 0xFF or len(message.descriptors) != (0 if absent else 1):
        raise ProtocolError("one descriptor for queue 0 belongs here", f"{word:#x}, {len(message.descriptors)}")
    return -1 if absent else message.descriptors[0]


def handed_on(event: Event) -> int:
    """The descriptor that whoever acts on the event now owns; -1 for none."""
    match event:
        case MemoryMapped(descriptor=descriptor):
            return descriptor
        case QueueStarted(kick=kick) | QueueResumed(kick=kick):
            return kick
        case CallChanged(call=call):
            return call
    return -1
