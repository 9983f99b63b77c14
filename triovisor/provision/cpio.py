"""newc cpio archives, as an initramfs is one (`Documentation/driver-api/early-userspace/buffer-format.rst` in Linux).

Sans-I/O and deterministic: the same entries give the same bytes, whoever builds them and whenever.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "archive", "character_device", "file", "folder", "link", "parse"]

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
HEADER = 110
BLOCK = 512
"""The archive's length is a multiple of this, as cpio(1) writes it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the archive. `path` is relative; `mode` has the type's bits too."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, content: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, content)


def link(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries in their order, all owned by root and dated 0. A folder must stand before what is in it."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(0, Entry(TRAILER, 0)))
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % BLOCK)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.content + bytes(-len(entry.content) % 4)


def parse(data: bytes) -> list[Entry]:
    """The archive's entries. Raises ValueError that names the offset where `data` is no newc archive."""
    entries: list[Entry] = []
    at = 0
    while True:
        if data[at : at + 6] != MAGIC or len(data) < at + HEADER:
            raise ValueError(f"no newc header at offset {at}")
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = data[at + HEADER : at + HEADER + name_size - 1].decode()
        if name == TRAILER:
            return entries
        start = (at + HEADER + name_size + 3) & ~3
        at = (start + size + 3) & ~3
        if at > len(data):
            raise ValueError(f"{name} ends at offset {at}, the archive at {len(data)}")
        entries.append(Entry(name, mode, data[start : start + size], device))
