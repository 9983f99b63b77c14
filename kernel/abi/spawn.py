"""Hypervisor ↔ zygote: how a domain's process comes to be.

A zygote is a warm, single-threaded interpreter that the hypervisor started. Its control channel is a SOCK_SEQPACKET
pair like any other, but both ends are trusted: a packet that breaks the rules here is a bug, not an attack.
Answers come in the order in which the children are ready, not in that of the requests.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from kernel.abi.ids import U32, U63, Name, Peer, RequestId

__all__ = [
    "CONTROL", "FIRST_UID", "MAX_FDS", "STDERR", "Identity", "Jail", "JailKind", "JailLevel",
    "SpawnFailed", "SpawnRequest", "Spawned", "ZygoteReply", "ZygoteRequest", "ZygoteRequests",
]

MAX_FDS = 64
"""Descriptors that one child may be born with. A guest needs five, whatever its disks; SCM_RIGHTS carries 253."""

FIRST_UID = 100_000
"""Where a hypervisor of root runs its domains: host uid `FIRST_UID + domid`, above what `useradd` gives out."""

CONTROL = "control"
"""Name of the descriptor that every child must have: the domain's end of its control channel."""

STDERR = "stderr"
"""Name of a descriptor that also becomes the child's standard error. Without it that is `/dev/null`."""

JailKind = Literal["driver", "storage", "dom0", "guest", "native"]
JailLevel = Literal["full", "reduced", "none"]
"""`none` is a zygote's own: it has to clone and to mount."""

ModuleName = Annotated[str, Meta(max_length=128, pattern=r"^([a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*)?\Z")]
FdName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_.:-]*\Z")]


class Identity(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Who the child will be."""

    name: Name
    peer: Peer


class Jail(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a child may see and use. Sizes in bytes; 0 means *none of it*, except where a field says otherwise.

    A `driver` and a `native` guest have no /proc and nothing that can be written: asking for it is refused. `storage`
    is a driver that may besides run a program of the host's, in its own jail.
    """

    kind: JailKind
    uid: U32 = 0
    """Host uid and gid where the zygote is root; 0 means `FIRST_UID + domid`. Ordinary users keep their own."""
    proc: bool = False
    shm_bytes: U63 = 0
    """tmpfs on /dev/shm, the only one from which code may be mapped: a UML guest's memory is a file there. No
    file may be larger, on whatever descriptor (RLIMIT_FSIZE)."""
    tmp_bytes: U63 = 0
    run_bytes: U63 = 0
    nofile: Annotated[int, Meta(ge=8, le=1 << 20)] = 256
    nproc: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    """Threads and processes together, counted for this domain alone."""
    memory_bytes: U63 = 0
    """RLIMIT_AS; 0 is no limit."""
    cpus: tuple[Annotated[int, Meta(ge=0, le=8191)], ...] = ()
    """CPUs the child may run on; empty is those of the zygote."""


class SpawnRequest(Struct, tag=0x51, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Clone a jailed child and run the role in it.

    Caller:  the hypervisor.
    Rides:   `fd_names` descriptors, in that order. The child has them and no other.
    Promise: one `Spawned` or one `SpawnFailed`. The child is the caller's own: it alone reaps it.
    Errors:  SpawnFailed.
    """

    request: RequestId
    role: ModuleName
    """Module that the child's entry runs; "" for none."""
    identity: Identity
    jail: Jail
    config: bytes
    """Opaque here: the role's own msgpack."""
    fd_names: Annotated[tuple[FdName, ...], Meta(min_length=1, max_length=MAX_FDS)]


class ZygoteRequest(Struct, tag=0x52, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Fork a zygote that has the role's code imported, behind the role's import wall.

    Caller:  the hypervisor, of the base zygote.
    Rides:   one descriptor: the new zygote's control socket.
    Promise: `Spawned` once the import is done, with jail `none`; or `SpawnFailed` with step `import`.
    """

    request: RequestId
    role: ModuleName


class Spawned(Struct, tag=0x53, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The child is in its jail and about to run its role.

    Caller:  a zygote.
    Rides:   the child's pidfd.
    """

    request: RequestId
    pid: U32
    """In the namespace of the zygote, which is the hypervisor's."""
    jail: JailLevel
    missing: tuple[str, ...]
    """Steps of the jail that this host cannot do, of a zygote those that its children will lack. Empty where `jail`
    is `full`."""


class SpawnFailed(Struct, tag=0x54, array_like=True, frozen=True, forbid_unknown_fields=True):
    """There is no child, or it has been killed.

    Caller:  a zygote.
    Rides:   the dead child's pidfd where one was born (`born`), so that the caller can reap it; else nothing.
    """

    request: RequestId
    born: bool
    step: str
    """`request`, `clone`, `import`, `timeout`, or the step of the jail that failed."""
    why: str


ZygoteRequests = SpawnRequest | ZygoteRequest
ZygoteReply = Spawned | SpawnFailed
