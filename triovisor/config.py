"""A guest's TOML file. Each mistake is one line: the file, the key, what is wrong and what would be right."""

import difflib
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from kernel.abi.guest_config import MIN_MEMORY_MIB, ONLY_FOR, Action, DiskConfig, GuestConfig
from triovisor.disks import ConfigError, read_disks, shown

__all__ = ["ConfigError", "load"]

_ACTIONS = " or ".join(f'"{action}"' for action in Action)

_RIGHT = {
    "name": "letters, digits and _ . + -, a letter or digit first, at most 64 in all",
    "memory": f"a whole number of MiB, {MIN_MEMORY_MIB} to 65536",
    "type": '"pv", Linux, or "native", a Python program',
    "vcpus": "1, since a guest of this kind has one",
    "cpus": 'CPUs as a string, such as "1" or "0-1,3"',
    "kernel": 'the path of a guest kernel, such as "/usr/bin/linux.uml"',
    "ramdisk": "the path of an initramfs",
    "root": 'one of the disks as the guest names it, such as "/dev/vda"',
    "extra": "words for the guest's kernel line, a string of at most 1024 characters",
    "program": "the path of a Python program with async def main(domain)",
    "args": "the program's arguments, at most 64 strings of at most 1024 characters",
    "peers": "names of guests that it may speak with, at most 64 strings",
    "on_poweroff": _ACTIONS,
    "on_reboot": _ACTIONS,
    "on_crash": _ACTIONS,
}
"""What each key takes, but `disk`."""

_TYPES = get_type_hints(GuestConfig, include_extras=True)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> GuestConfig:
    """Read and check a guest's TOML. Relative paths in it are made absolute against its folder. `overrides`: words
    KEY=VALUE that count instead of what it says; relative paths in them are the caller's. Raises ConfigError."""
    file = Path(path).absolute()
    try:
        table = _parse(file)
        table.update(_override(word) for word in overrides)
        return _guest(table, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


_FILES = ("kernel", "ramdisk", "program")


def _override(word: str) -> tuple[str, Any]:
    """A value is as in TOML; what is none is a string, and so is what the key takes only as one."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is no KEY=VALUE: write it as memory=128")
    if key not in _TYPES:
        raise ConfigError(_unknown_key(key))
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        msgspec.convert(value, _TYPES[key])
    except tomllib.TOMLDecodeError:
        value = text
    except msgspec.ValidationError:
        value = text if _takes(key, text) else value
    return key, os.path.abspath(value) if key in _FILES and isinstance(value, str) else value


def _takes(key: str, value: Any) -> bool:
    try:
        msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError:
        return False
    return True


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'{error}: this is not TOML, as name = "web" is') from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start} is not UTF-8: TOML is a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{error.strerror}: name a guest's TOML file") from error


def _guest(table: dict[str, Any], folder: Path) -> GuestConfig:
    for key in table:
        if key not in _TYPES:
            raise ConfigError(_unknown_key(key))
    if "name" not in table:
        raise ConfigError('name is missing: add a line such as name = "web"')
    values = {key: _value(key, value) for key, value in table.items() if key != "disk"}
    _check_type(values)
    for key in _FILES:
        if key in values:
            values[key] = _file(key, values[key], folder)
    disks = read_disks(table.get("disk", []), folder)
    _check_root(values.get("root"), disks)
    return GuestConfig(disk=disks, **values)


def _unknown_key(key: str) -> str:
    near = difflib.get_close_matches(key, _TYPES, 1)
    return f"unknown key {key!r}: " + (f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_TYPES)}")


def _check_type(values: dict[str, Any]) -> None:
    """A key of another type of guest is a mistake, even with a value that says nothing."""
    kind = values.get("type", "pv")
    for key in values:
        if ONLY_FOR.get(key, kind) != kind:
            raise ConfigError(
                f'{key} is for a guest with type = "{ONLY_FOR[key]}", this one has type = "{kind}": leave it out'
            )
    if kind == "native" and "program" not in values:
        raise ConfigError(f"program is missing: give {_RIGHT['program']}")


def _value(key: str, value: Any) -> Any:
    if key == "memory" and type(value) is int and value < MIN_MEMORY_MIB:
        raise ConfigError(f"memory = {value}: a guest needs at least {MIN_MEMORY_MIB} (MiB)")
    try:
        return msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key} = {shown(value)}: give {_RIGHT[key]}") from error


def _file(key: str, value: str, folder: Path) -> str:
    path = folder / value
    if not path.is_file():
        default = "" if key == "program" else ", or leave it out for the default"
        raise ConfigError(f"{key} = {shown(value)}: no such file: give {_RIGHT[key]}{default}")
    return os.path.normpath(path)


def _check_root(root: str | None, disks: list[DiskConfig]) -> None:
    names = [f"/dev/{disk.vdev}" for disk in disks]
    if root is not None and root not in names:
        mend = f"there is {', '.join(names)}" if names else "add a [[disk]] with it"
        raise ConfigError(f"root = {shown(root)}: no disk has that vdev: {mend}")
