"""A native guest's shared memory: granted to one named peer, or mapped from one."""

import contextlib
import os

from domains.runtime import domain as runtime
from domains.runtime.numbers import Numbers
from kernel.abi.hypercalls import Access, GnttabEnd, GnttabGrant, GnttabMap
from kernel.abi.ids import GrantRef, Peer
from kernel.abi.io.ring import Sealed, Unsealed, check_sealed
from kernel.abi.status import DomainFault, KernelBug, Refused

__all__ = ["Granted", "Grants", "Mapped"]


class Granted:
    """Memory of ours that `to` may map once. `ref` is what it must be told; `view` is the memory, which we may always
    write. What the peer writes into it is copied once, and then decided on."""

    def __init__(self, grants: "Grants", ref: GrantRef, to: Peer, memory: Sealed) -> None:
        self.ref = ref
        self.to = to
        self.view = memory.view
        self._grants = grants
        self._memory = memory

    async def end(self) -> None:
        """Free the reference, and our mapping unless views of it are in use. A peer that has mapped it keeps that:
        memory that was shared cannot be taken back, only left."""
        await self._grants.forget(self.ref)
        with contextlib.suppress(BufferError):
            self._memory.unmap()


class Mapped:
    """Memory of `owner`'s. `view` can be written where the grant allows it."""

    def __init__(self, owner: Peer, view: memoryview) -> None:
        self.owner = owner
        self.view = view

    def unmap(self) -> None:
        """Give the mapping back. Every view made of `view` must have been released."""
        memory = self.view.obj
        self.view.release()
        memory.close()  # type: ignore[attr-defined]


class Grants:
    """All grants of this domain. Every call raises Refused when the hypervisor refuses it: the ABI's catalogue has the
    reasons of `GnttabGrant` and `GnttabMap`."""

    def __init__(self, domain: runtime.Domain, refs: Numbers) -> None:
        self._domain = domain
        self._refs = refs

    async def grant(self, to: Peer, size_bytes: int, access: Access = Access.READ) -> Granted:
        """Fresh memory, zeroed and all there, for one incarnation of a peer to map. Raises OSError without memory."""
        memory = Sealed(f"grant-{to}", size_bytes, read_only_to_others=access is Access.READ)
        ref = GrantRef(self._refs.take())
        try:
            await self._domain.call(GnttabGrant, [memory.descriptor], ref=ref, to=to, access=access)
        except BaseException:
            await self.forget(ref)
            memory.unmap()
            raise
        finally:
            os.close(memory.descriptor)
        return Granted(self, ref, to, memory)

    async def map(self, owner: Peer, ref: int, size_bytes: int, access: Access = Access.READ) -> Mapped:
        """Map what `owner` granted us: exactly `size_bytes`, sealed, all there. Raises DomainFault when it is not, for
        that the owner has to answer."""
        answer = await self._domain.call(GnttabMap, owner=owner, ref=GrantRef(ref), access=access)
        if answer.descriptor is None:
            raise KernelBug("GnttabMap was answered OK without a descriptor")
        try:
            return Mapped(owner, check_sealed(answer.descriptor, size_bytes, writable=access is Access.READ_WRITE))
        except Unsealed as error:
            raise DomainFault(owner, f"granted memory that cannot be used: {error}") from error
        finally:
            os.close(answer.descriptor)

    async def forget(self, ref: GrantRef) -> None:
        """End a grant, if the hypervisor has it still."""
        with contextlib.suppress(Refused):
            await self._domain.call(GnttabEnd, ref=ref)
        self._refs.give_back(ref)
