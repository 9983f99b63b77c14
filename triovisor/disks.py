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
from triovisor.mistakes import Mistake
from triovisor.overlays import QCOW2_MAGIC

__all__ = ["ConfigError", "read_disks", "shown"]

SECTOR_BYTES = 512
MAX_DISKS = 16

_TYPES = get_type_hints(DiskConfig, include_extras=True)
_POSITIONS = ("target", "format", "vdev", "access")
"""What the words of an `xl` string without `key=` mean, in order."""

_ACCESS = {"r": "ro", "ro": "ro", "w": "rw", "rw": "rw"}
_RIGHT = {
    "target": "the path of an image or a block device",
    "vdev": '"vda" to "vdp"',
    "access": '"rw" or "ro"',
    "backend": 'the name of a driver domain, such as "blkback"',
    "format": '"raw" or "qcow2"',
    "backing": "the path of the raw image or block device on which the qcow2 image stands",
}
_BACKENDS = {"raw": "blkback", "qcow2": "qcowback"}
"""The driver of the boot manifest that comes with the hypervisor, by format."""


class ConfigError(Mistake):
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
    table["access"] = _ACCESS.get(str(table.get("access", "rw")), table.get("access"))
    for key, value in table.items():
        _check(key, value)
    format = table.setdefault("format", "raw")
    table.setdefault("backend", _BACKENDS[format])
    _check_image("target", table["target"], folder, qcow2=format == "qcow2")
    if "backing" in table:
        if format == "raw":
            raise ConfigError(f"backing = {shown(table['backing'])}: only for format = \"qcow2\": leave it out")
        _check_image("backing", table["backing"], folder, qcow2=False)
        table["backing"] = os.path.normpath(folder / table["backing"])
    return DiskConfig(**{**table, "target": os.path.normpath(folder / table["target"])})


def _keyed(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key not in _TYPES:
            near = difflib.get_close_matches(key, _TYPES, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_TYPES)}"
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


def _check_image(key: str, value: str, folder: Path, *, qcow2: bool) -> None:
    """Early, for a better line than the hypervisor's, which opens the image and knows for certain."""
    where, path = f"{key} = {shown(value)}", Path(os.path.normpath(folder / value))
    try:
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISBLK(mode)):
            raise ConfigError(f"{where}: neither a file nor a block device: give {_RIGHT[key]}")
        with path.open("rb") as image:
            magic = image.read(len(QCOW2_MAGIC))
            size = image.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        make = f"tv image create {path} --backing RAW" if qcow2 else f"qemu-img create -f raw {path} 1G"
        raise ConfigError(f"{where}: no such file: make one with: {make}") from error
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}: give {_RIGHT[key]} that you may read") from error
    if (magic == QCOW2_MAGIC) is not qcow2:
        raise ConfigError(f"{where}: {_wrong_format(key, path, qcow2=qcow2)}")
    if size < SECTOR_BYTES:
        raise ConfigError(f"{where}: {size} bytes: an image has at least one sector of {SECTOR_BYTES}")


def _wrong_format(key: str, path: Path, *, qcow2: bool) -> str:
    if qcow2:
        return f'no qcow2 image: leave out format, or make one with: tv image create {path}.qcow2 --backing {path}'
    if key == "target":
        return 'a qcow2 image: add format = "qcow2"'
    return "a qcow2 image: a raw one is what another may stand on"
