"""Grants: which one peer may map which memory of whom.

Memory is a token here; the hypervisor keeps the descriptor that it stands for.
"""

from dataclasses import dataclass

from kernel.abi.hypercalls import Access
from kernel.abi.ids import GrantRef, Peer
from kernel.abi.status import Refused, Status

__all__ = ["GrantTable", "Token"]

MAX_GRANTS = 1024
"""Of one domain, mapped ones included."""

MAX_UNMAPPED = 128
"""Of one domain: each holds a descriptor of the hypervisor's. Two for each ring, rings for an active backend, a standby
and a successor, sixteen disks; the rest is air."""

Token = int
"""Stands for a descriptor. Whoever gets a token back from a method here closes what it stands for."""


@dataclass(slots=True)
class _Grant:
    to: Peer
    access: Access
    token: Token | None


class GrantTable:
    """All grants of all living incarnations."""

    def __init__(self) -> None:
        self._grants: dict[Peer, dict[GrantRef, _Grant]] = {}

    def grant(self, owner: Peer, ref: GrantRef, to: Peer, access: Access, token: Token) -> None:
        """Record a grant. Refuses a reference in use (EEXIST) and one too many (ENOSPC); the token stays the
        caller's then."""
        grants = self._grants.setdefault(owner, {})
        if ref in grants:
            raise Refused(Status.EEXIST, f"grant {ref} of {owner} is in use")
        if len(grants) >= MAX_GRANTS:
            raise Refused(Status.ENOSPC, f"{owner} has {MAX_GRANTS} grants: end one first")
        if sum(1 for held in grants.values() if held.token is not None) >= MAX_UNMAPPED:
            raise Refused(Status.ENOSPC, f"{owner} has {MAX_UNMAPPED} grants that nobody has mapped: end one first")
        grants[ref] = _Grant(to, access, token)

    def map(self, caller: Peer, owner: Peer, ref: GrantRef, access: Access) -> Token:
        """Give the memory out, once. Refuses ENOENT, and EPERM for another's grant or for more access than was
        granted."""
        grant = self._grants.get(owner, {}).get(ref)
        if grant is None:
            raise Refused(Status.ENOENT, f"{owner} has no grant {ref}")
        if grant.to != caller:
            raise Refused(Status.EPERM, f"grant {ref} of {owner} is for {grant.to}")
        if access > grant.access:
            raise Refused(Status.EPERM, f"grant {ref} of {owner} is for reading only")
        if grant.token is None:
            raise Refused(Status.EPERM, f"grant {ref} of {owner} was mapped already")
        token, grant.token = grant.token, None
        return token

    def end(self, owner: Peer, ref: GrantRef) -> Token | None:
        """Free a reference. A mapping that was made of it stays."""
        grant = self._grants.get(owner, {}).pop(ref, None)
        if grant is None:
            raise Refused(Status.ENOENT, f"{owner} has no grant {ref}")
        return grant.token

    def died(self, peer: Peer) -> list[Token]:
        """Forget what an incarnation granted, and what was granted to it and not mapped."""
        tokens = [grant.token for grant in self._grants.pop(peer, {}).values()]
        for grants in self._grants.values():
            for ref in [ref for ref, grant in grants.items() if grant.to == peer]:
                tokens.append(grants.pop(ref).token)
        return [token for token in tokens if token is not None]
