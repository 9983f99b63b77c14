"""A guest's disks as its TOML gives them: `[[disk]]` tables, or strings as in xl-disk-configuration(5)."""

import difflib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from kernel.abi.guest_config import DiskConfig

__all__ = ["ConfigError", "read_disks", "shown"]

SECTOR_BYTES = 512
MAX_DISKS = 16

_TYPES = get_type_hints(DiskConfig, include_extras=True)
_KEYS = (*_TYPES, "format")
_POSITIONS = ("target", "format", "vdev", "access")
"""What the words of an `xl` string without `key=` mean, in order."""

_ACCESS = {"r": "ro", "ro": "ro", "w": "rw", "rw": "rw"}
_RIGHT = {
    "target": "the path of a raw image or a block device",
    "vdev": '"vda" to "vdp"',
    "access": '"rw" or "ro"',
    "backend": 'the name of a driver domain, such as "blkback"',
    "format": '"raw", the only one there is',
}
_QCOW2 = b"QFI\xfb"


class ConfigError(Exception):
    """A mistake in a guest's configuration: one line that says what is wrong and what would be right."""


def shown(value: Any) -> str:
    """A value as its TOML has it, cut to what fits in a line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def read_disks(entries: Any, folder: Path) -> list[DiskConfig]:
    """Check the value of `disk`, and each image that it names. Raises ConfigError."""
    if not isinstance(entries, list):
        raise ConfigError(f"disk = {shown(entries)}: give an array, [[disk]] tables or strings")
    if len(entries) > MAX_DISKS:
        raise ConfigError(f"disk: {len(entries)} of them: a guest has at most {MAX_DISKS}")
    disks: list[DiskConfig] = []
    for number, entry in enumerate(entries, 1):
        try:
            disk = _disk(entry, folder)
            if disk.vdev in (other.vdev for other in disks):
                raise ConfigError(f"vdev = {shown(disk.vdev)}: another disk has it: give each its own")
        except ConfigError as error:
            raise ConfigError(f"disk {number}: {error}") from error
        disks.append(disk)
    return disks


def _disk(entry: Any, folder: Path) -> DiskConfig:
    match entry:
        case dict():
            table = _keyed(entry.items())
        case str():
            table = _keyed(_words(entry))
        case _:
            raise ConfigError(f'{shown(entry)}: give a table or a string such as "target=a.img,vdev=vda,access=rw"')
    for key in ("target", "vdev"):
        if key not in table:
            raise ConfigError(f"{key} is missing: add {key}, {_RIGHT[key]}")
    if table.pop("format", "raw") != "raw":
        raise ConfigError(f"its format: give {_RIGHT['format']}; qemu-img convert -O raw makes one")
    table["access"] = _ACCESS.get(str(table.get("access", "rw")), table.get("access"))
    for key, value in table.items():
        _check(key, value)
    target = os.path.normpath(folder / table["target"])
    _check_image(table["target"], Path(target))
    return DiskConfig(**{**table, "target": target})


def _keyed(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEYS)}"
            raise ConfigError(f"unknown key {key!r}: {mend}")
        if key in table:
            raise ConfigError(f"{key} is given twice: once is enough")
        table[key] = value
    return table


def _words(text: str) -> Iterable[tuple[str, str]]:
    """The pairs of an `xl` string. The place of a word without `key=` says what it means; an empty one says nothing."""
    positions = iter(_POSITIONS)
    for word in (word.strip() for word in text.split(",")):
        key, equals, value = word.partition("=")
        if equals:
            yield key.strip(), value.strip()
            continue
        position = next(positions, None)
        if position is None:
            raise ConfigError(f"{shown(text)}: too many words: {','.join(_POSITIONS)} is the order without keys")
        if word:
            yield position, word


def _check(key: str, value: Any) -> None:
    try:
        msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key} = {shown(value)}: give {_RIGHT[key]}") from error


def _check_image(target: str, path: Path) -> None:
    """Early, for a better line than the hypervisor's, which opens the image and knows for certain."""
    where = f"target = {shown(target)}"
    try:
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"{where}: neither a file nor a block device: give {_RIGHT['target']}")
        with path.open("rb") as image:
            magic = image.read(len(_QCOW2))
            size = image.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file: make one with: qemu-img create -f raw {path} 1G") from error
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}: give {_RIGHT['target']} that you may read") from error
    if magic == _QCOW2:
        raise ConfigError(f"{where}: a qcow2 image: make a raw one with: qemu-img convert -O raw {path} {path}.raw")
    if size < SECTOR_BYTES:
        raise ConfigError(f"{where}: {size} bytes: an image has at least one sector of {SECTOR_BYTES}")
