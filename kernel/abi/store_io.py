"""A domain ↔ the store, on the message channel that `XenstoreConnect` gives; and what hypervisor and store share.

Operations and bodies are those of xenstore's own wire (`kernel.abi.io.xs_wire`), so that a domain and a client on the
Unix socket are served alike. A channel ends when the store dies, and what lies in it is still read. The client asks
for another, and asks again what was not answered: nothing is done twice, and no event is lost.
"""

from typing import Annotated

from msgspec import Meta, Struct

from kernel.abi.ids import U32, U63, DomId

__all__ = [
    "SLOT_BYTES",
    "STATE_BYTES",
    "FromStore",
    "StoreEvent",
    "StoreNode",
    "StoreReply",
    "StoreRequest",
]

STATE_BYTES = 64 << 20
"""Of the store's memory: what all its nodes, watches and clients take, twice. It takes only what it uses."""

SLOT_BYTES = 8192
"""Of the memory of one stream: a message that is being sent, and where it is."""

Body = Annotated[bytes, Meta(max_length=4096)]
"""XENSTORE_PAYLOAD_MAX."""

Number = Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]


class StoreRequest(Struct, tag=0x01, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Client → store. Numbers grow; one request is under way at a time.

    One that is asked again, since its answer did not come, has its number and is done once.
    """

    number: Number
    op: Annotated[int, Meta(ge=0, le=0xFFFF)]
    transaction: U32
    body: Body


class StoreReply(Struct, tag=0x02, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Store → client: `op` is the request's, or ERROR with the error's name as its body."""

    number: Number
    op: Annotated[int, Meta(ge=0, le=0xFFFF)]
    body: Body


class StoreEvent(Struct, tag=0x03, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Store → client: a watch has fired; `body` as in a WATCH_EVENT. Numbers count up from 1 for each connection. One
    may come again on another channel, with its number."""

    number: U63
    body: Body


FromStore = StoreReply | StoreEvent


class StoreNode(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Hypervisor → store (`XenstorePut`): a node's value, owner and the other domain that reads it. None in the place
    of a value: it goes, with all below it."""

    path: Annotated[str, Meta(min_length=1, max_length=3072)]
    value: Annotated[str, Meta(max_length=4096)] | None
    owner: DomId
    reader: DomId | None = None
