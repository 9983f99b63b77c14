"""Identities. A peer is always a pair: a domain and one incarnation of it."""

from typing import Annotated, NewType

from msgspec import Meta, Struct

__all__ = [
    "ANY_GENERATION",
    "DOM0",
    "HYPERVISOR",
    "DomId",
    "Domain",
    "Generation",
    "GrantRef",
    "Name",
    "Peer",
    "Port",
    "Request",
    "RequestId",
    "Sector",
    "VbdHandle",
    "Path",
]

DomId = NewType("DomId", int)
"""Number of a domain, 0 … 32751, as in Xen (`DOMID_FIRST_RESERVED` is 0x7FF0). It is never used again in one run."""

Generation = NewType("Generation", int)
"""Which incarnation of a domain. Starts at 1 and grows with each restart and each standby."""

Port = NewType("Port", int)
"""One end of an event channel, counted for each domain."""

GrantRef = NewType("GrantRef", int)
"""A grant, counted for each owner."""

RequestId = NewType("RequestId", int)
"""The caller's own number for a hypercall, unique among its calls in flight."""

VbdHandle = NewType("VbdHandle", int)
"""A virtual block device, unique in the run."""

Sector = NewType("Sector", int)
"""512 bytes, whatever the device's block size (virtio 1.2 §5.2)."""

HYPERVISOR = DomId(0x7FF1)
"""Speaks on every control channel. Xen's DOMID_XEN is likewise a reserved number."""

DOM0 = DomId(0)

ANY_GENERATION = Generation(0)
"""In the place of a peer's generation: whichever incarnation comes first. No incarnation has it."""

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U63 = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
Request = Annotated[RequestId, Meta(ge=0, le=0xFFFF_FFFF)]
Domain = Annotated[DomId, Meta(ge=0, le=0x7FFF)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")]
"""A domain's name: what `xl` allows, without a leading dot or dash, so that it is also a safe file name. (`\\Z`, since
`$` would let a last newline pass.)"""
Path = Annotated[str, Meta(min_length=1, max_length=4095, pattern=r"^[^\0]+\Z")]
"""Of a file; in bytes it may still be longer than Linux takes, which is for the one that opens it to say."""


class Peer(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One incarnation of a domain. A message to a dead incarnation is an error and never a surprise."""

    domid: Domain
    generation: Annotated[Generation, Meta(ge=0, le=0xFFFF_FFFF)]

    def __str__(self) -> str:
        return f"{self.domid}.{self.generation}"
