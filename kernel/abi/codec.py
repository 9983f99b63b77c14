"""Packets and messages.

One packet is one batch: a msgpack array of messages, each an array `[op, …fields]`,
at most `MAX_PACKET` bytes together. Any msgpack reader can follow a trace.
"""

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["MAX_PACKET", "PART_BYTES", "Codec", "Undecodable", "cut", "encode", "pack_batches"]

MAX_PACKET = 65536

PART_BYTES = 32768
"""The longest piece of a value that goes in several packets."""
"""Bytes in one packet. Far below the 212,960 that a Linux SOCK_SEQPACKET carries, so that a queue holds several."""

MAX_BATCH = 256
"""Messages in one packet. Four times what the largest sender has (64 descriptors in a packet bound a reconnection), and
few enough that the dearest packet costs the hypervisor two milliseconds."""

_ARRAY_16, _ARRAY_32 = 0xDC, 0xDD
"""msgpack's first byte of an array whose length has 2 or 4 bytes; a shorter one's is 0x90 + length."""

_encoder = msgspec.msgpack.Encoder()


class Undecodable(Struct, frozen=True):
    """An item of a batch that is no message of this channel: its number and the one after it, where it had them."""

    op: int | None
    request: int | None
    why: str


def encode(messages: Sequence[Struct]) -> bytes:
    """One packet. The caller keeps it under `MAX_PACKET`; `pack_batches` splits for him."""
    return _encoder.encode(messages)


def pack_batches(messages: Iterable[Struct]) -> list[bytes]:
    """Coalesce messages, in order, into as few packets as fit."""
    packets: list[bytes] = []
    batch: list[bytes] = []
    size = 5
    for message in messages:
        raw = _encoder.encode(message)
        if batch and (size + len(raw) > MAX_PACKET or len(batch) == MAX_BATCH):
            packets.append(_encoder.encode([msgspec.Raw(r) for r in batch]))
            batch, size = [], 5
        batch.append(raw)
        size += len(raw)
    if batch:
        packets.append(_encoder.encode([msgspec.Raw(r) for r in batch]))
    return packets


def cut(value: Any) -> list[bytes]:
    """A value that is too long for a packet with other things in it, as pieces of its msgpack; none where it fits."""
    raw = _encoder.encode(value)
    return [raw[at : at + PART_BYTES] for at in range(0, len(raw), PART_BYTES)] if len(raw) > PART_BYTES else []


class Codec:
    """Decoder for one channel's messages (a union of tagged, array-like structs).

    Raises `msgspec.DecodeError` for a packet that is no array of at most `MAX_BATCH` items, or not msgpack all
    through: the peer broke the ABI. An item that is no known message comes back as `Undecodable`, and does not hide the
    others.
    """

    def __init__(self, messages: UnionType | type[Struct]) -> None:
        self._batch: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(list[messages])  # type: ignore[valid-type]
        self._items = msgspec.msgpack.Decoder(list[msgspec.Raw])
        self._one: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(messages)

    def decode(self, packet: bytes) -> list[Any]:
        """The packet's messages in order, `Undecodable` in the place of what is none."""
        if _length(packet) > MAX_BATCH:
            raise msgspec.DecodeError(f"{_length(packet)} messages in a packet, at most {MAX_BATCH}")
        try:
            return self._decode(packet)
        except (UnicodeDecodeError, RecursionError) as error:  # text that is no UTF-8; nested without end
            raise msgspec.DecodeError(str(error)) from error

    def _decode(self, packet: bytes) -> list[Any]:
        try:
            batch: list[Any] = self._batch.decode(packet)
        except msgspec.ValidationError:
            batch = [self._decode_item(item) for item in self._items.decode(packet)]
        return batch

    def _decode_item(self, item: msgspec.Raw) -> Any:
        try:
            return self._one.decode(item)
        except msgspec.ValidationError as error:
            return Undecodable(*_numbers_of(item), str(error))


def _length(packet: bytes) -> int:
    """Of the array that a packet begins with, before anything is made of it; 0 where it begins with something else."""
    first = packet[0] if packet else 0
    if first == _ARRAY_16:
        return int.from_bytes(packet[1:3], "big")
    if first == _ARRAY_32:
        return int.from_bytes(packet[1:5], "big")
    return 0


def _numbers_of(item: msgspec.Raw) -> tuple[int | None, int | None]:
    """Operation and request number of a message we cannot read, for the ENOSYS that answers it."""
    try:
        fields = msgspec.msgpack.decode(item)
    except msgspec.DecodeError:
        fields = None
    op, request = [*fields, None, None][:2] if isinstance(fields, list) else (None, None)
    return op if type(op) is int else None, request if type(request) is int else None
