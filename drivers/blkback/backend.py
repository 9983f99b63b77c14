"""What the block backend decides about a request: do it, refuse it, or blame the frontend for it.

No files and no clock here: a request is what `REQUEST` unpacked, read once from the ring.
"""

from dataclasses import dataclass

from kernel.abi.io.blkif import MAX_BYTES, POOL_AT, Op, RspStatus

__all__ = ["Disk", "Fields", "FrontendBroken", "decide"]

Fields = tuple[int, int, int, int, int, int]
"""`id, op, flags, length, sector, place`, as in `kernel.abi.io.blkif.REQUEST`."""

_READ, _WRITE, _FLUSH = int(Op.READ), int(Op.WRITE), int(Op.FLUSH)
_TRANSFERS = frozenset({_READ, _WRITE})
_RANGES = frozenset({int(Op.DISCARD), int(Op.WRITE_ZEROES), int(Op.ZERO_UNMAP)})
_OK, _RANGE = int(RspStatus.OK), int(RspStatus.RANGE)
_READ_ONLY, _UNSUPPORTED = int(RspStatus.READ_ONLY), int(RspStatus.UNSUPPORTED)


class FrontendBroken(Exception):
    """The frontend broke the ring's rules. `evidence` is what was found, in words."""

    def __init__(self, what: str, evidence: str) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class Disk:
    """A vbd as the hypervisor attached it, in sectors of 512 bytes, and the size of its frontend's grants."""

    sectors: int
    read_only: bool
    ring_bytes: int


def decide(request: Fields, disk: Disk) -> int:
    """`RspStatus.OK` to do the request, any other to answer it with. Raises FrontendBroken."""
    _, op, flags, length, sector, place = request
    if flags or length & 511:
        raise FrontendBroken("wrong request", f"op {op}, flags {flags:#x}, length {length}")
    if op in _TRANSFERS:
        if not 0 < length <= MAX_BYTES:
            raise FrontendBroken("wrong length", f"op {op}, length {length}")
        if place < POOL_AT or place + length > disk.ring_bytes:
            raise FrontendBroken("place outside the pool", f"op {op}, place {place}, length {length}")
    elif op == _FLUSH:
        if length or place:
            raise FrontendBroken("flush with data", f"length {length}, place {place}")
        return _OK
    elif op not in _RANGES:
        return _UNSUPPORTED
    if sector + (length >> 9) > disk.sectors:
        return _RANGE
    if disk.read_only and op != _READ:
        return _READ_ONLY
    return _OK
