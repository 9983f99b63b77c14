"""Who may do what with a node: Xen's rules and Xen's words (`docs/misc/xenstore.txt`, "Permissions")."""

from drivers.store.refusal import Refusal

__all__ = ["DEAD", "DOM0_ALONE", "OWNER", "READ", "WRITE", "Permissions", "granted", "inherited", "pack", "unpack"]

READ, WRITE, OWNER = 1, 2, 4
DEAD = 8
"""What was given to a domain that is not there: it is shown, and of no use to a later one of that number."""

Permissions = tuple[tuple[int, int], ...]
"""(domid, bits): the first is the owner, and what all may who are not named; then those who are."""

DOM0_ALONE: Permissions = ((0, 0),)

_LETTERS = {b"n": 0, b"r": READ, b"w": WRITE, b"b": READ | WRITE}
_LETTER_OF = {bits: letter for letter, bits in _LETTERS.items()}
MAX_DOMID = 0x7FFF


def granted(permissions: Permissions, domid: int, target: int | None = None) -> int:
    """What a domain may, or one that acts for another, its `target`. Dom0 and the owner may everything."""
    owner, rest = permissions[0]
    if domid in (0, owner) or (target is not None and target == owner):
        return READ | WRITE | OWNER
    for named, bits in permissions[1:]:
        if named in (domid, target) and not bits & DEAD:
            return bits
    return rest


def inherited(permissions: Permissions, domid: int) -> Permissions:
    """Those of a new node below one with these. Who makes it owns it; what Dom0 makes is its parent's owner's."""
    return ((domid, permissions[0][1]), *permissions[1:]) if domid else permissions


def unpack(words: list[bytes]) -> Permissions:
    """From a letter and a domid each. Refuses EINVAL."""
    permissions = []
    for word in words:
        bits, number = _LETTERS.get(word[:1]), word[1:]
        if bits is None or not number.isdigit() or len(number) > 5 or int(number) > MAX_DOMID:
            raise Refusal("EINVAL")
        permissions.append((int(number), bits))
    if not permissions:
        raise Refusal("EINVAL")
    return tuple(permissions)


def pack(permissions: Permissions) -> bytes:
    """As a letter and a domid each, with a NUL behind."""
    return b"".join(b"%s%d\0" % (_LETTER_OF[bits & (READ | WRITE)], domid) for domid, bits in permissions)
