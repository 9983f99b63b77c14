"""Copy-on-write images in qcow2: made, looked at, checked and merged by QEMU's qemu-img, which knows the format.

An image may be a stranger's work. It is opened as what it is said to be, by the names that our caller gives, never by
one that it holds, and in a process with bounded memory. An image that a guest uses is locked, as QEMU locks it.
"""

import os
import re
import resource
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kernel.abi.cache import find_program
from triovisor.mistakes import Mistake

__all__ = ["QCOW2_MAGIC", "Checked", "ImageError", "ImageInfo", "check", "commit", "create", "info", "parse_size"]

QCOW2_MAGIC = b"QFI\xfb"
SECTOR_BYTES = 512

MEMORY_BYTES = 4 << 30
"""That qemu-img may map. A check takes two bytes for each cluster of the file."""

LEAKS, ERRORS = 3, 2
"""What `qemu-img check` exits with where it found only the one, or the other."""

_OWN_NAMES = r"^qemu-img: |(Could not open )?'?json:\{.*\}'?: "
"""What a person did not say, and need not read in an error."""

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class ImageError(Mistake):
    """An image cannot be used so: one line that names it, what is wrong, and the mend."""


class ImageInfo(Struct, frozen=True):
    """An image. `size_bytes`: of the disk that it makes; `used_bytes`: that its file takes. `backing`: what it stands
    on, "" for nothing. `cluster_bytes`: how much is copied when the first byte of it is written, 0 for a raw one."""

    format: str
    size_bytes: int
    used_bytes: int
    cluster_bytes: int
    backing: str
    corrupt: bool


class Checked(Struct, frozen=True):
    """How a check ended. `errors`: of them reads may be wrong; `leaks`: clusters that are allocated and not used;
    `repaired`: of both."""

    errors: int
    leaks: int
    repaired: int


def create(overlay: Path, backing: Path, size_bytes: int | None = None) -> ImageInfo:
    """Make an overlay over a raw image or block device; as large as that, or `size_bytes`. Whole, or not at all.

    Raises ImageError.
    """
    if _magic(backing) == QCOW2_MAGIC:
        raise ImageError(f"{backing}: a qcow2 image: an overlay stands on a raw one")
    beneath = os.path.abspath(backing)
    if not overlay.name or not Path(os.path.abspath(overlay)).parent.is_dir():
        raise ImageError(f"{overlay}: no such folder: name a file in one that there is")
    temporary = Path(os.path.abspath(overlay)).with_name(f".{overlay.name}.{secrets.token_hex(4)}")
    words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", beneath, str(temporary)]
    try:
        _run(overlay, [*words, *([str(size_bytes)] if size_bytes is not None else [])])
        os.link(temporary, overlay)
    except ImageError as error:
        raise ImageError(str(error).replace(f"{temporary}: ", "").replace(str(temporary), str(overlay))) from error
    except FileExistsError as error:
        raise ImageError(f"{overlay}: it exists: name a new file, or remove it") from error
    except OSError as error:
        raise ImageError(f"{overlay}: {error.strerror}: name a file in a folder that you may write") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return info(overlay)


def info(image: Path) -> ImageInfo:
    """Look at an image, also at one that is in use. Raises ImageError, also for one that keeps its data in another
    file, since that would be opened by the name that the image has for it."""
    format = "qcow2" if _magic(image) == QCOW2_MAGIC else "raw"
    told = _json(image, _run(image, ["info", "--output=json", "-U", _node(image, format)]))
    data = told.get("format-specific", {}).get("data", {})
    if "data-file" in data:
        raise ImageError(f"{image}: it keeps its data in another file: make a whole one with qemu-img convert")
    return ImageInfo(
        format=format,
        size_bytes=told["virtual-size"],
        used_bytes=told.get("actual-size", 0),
        cluster_bytes=told.get("cluster-size", 0),
        backing=_printable(told.get("backing-filename", "")),
        corrupt=data.get("corrupt", False),
    )


def check(image: Path, *, repair: bool = False) -> Checked:
    """See whether an image that nobody uses is whole; with `repair`, make it so. Raises ImageError."""
    _need_qcow2(image)
    info(image)
    mend = ["-r", "all"] if repair else []
    told = _json(image, _run(image, ["check", "--output=json", *mend, _node(image, "qcow2")], (LEAKS, ERRORS)))
    if told["check-errors"]:
        raise ImageError(f"{image}: {told['check-errors']} parts cannot be checked: is its disk at fault?")
    repaired = told.get("corruptions-fixed", 0) + told.get("leaks-fixed", 0)
    return Checked(told.get("corruptions", 0), told.get("leaks", 0), repaired)


def commit(overlay: Path, backing: Path) -> None:
    """Write what an overlay holds into what it stands on, and empty it. Neither may be in use. One that is interrupted
    is to be done again: until it has ended the overlay keeps all.

    Raises ImageError.
    """
    _need_qcow2(overlay)
    found = info(overlay).backing
    stands_on = os.path.normpath(Path(os.path.abspath(overlay)).parent / found)
    if not found:
        raise ImageError(f"{overlay}: it stands on no other, so there is nothing to commit to")
    if os.path.abspath(backing) != stands_on:
        raise ImageError(f"{overlay}: it stands on {found}: give --backing {stands_on}")
    _run(overlay, ["commit", "-q", _node(overlay, "qcow2", backing)])


def parse_size(text: str) -> int:
    """`"10G"` → bytes. Raises ImageError for what is no size of a disk."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    size = int(match[1]) * _SUFFIXES[match[2]] if match else 0
    if not 0 < size < 1 << 62 or size % SECTOR_BYTES:
        raise ImageError(f"size {text!r}: give a multiple of {SECTOR_BYTES} bytes, such as 10G")
    return size


def _magic(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(len(QCOW2_MAGIC))
    except FileNotFoundError as error:
        raise ImageError(f"{image}: no such file: mend the path") from error
    except OSError as error:
        raise ImageError(f"{image}: {error.strerror}: name an image that you may read") from error


def _need_qcow2(image: Path) -> None:
    if _magic(image) != QCOW2_MAGIC:
        raise ImageError(f"{image}: no qcow2 image: tv image create makes one")


def _node(image: Path, format: str, backing: Path | None = None) -> str:
    """How QEMU is told what to open, and nothing else, whatever the image says."""
    node: dict[str, Any] = {"driver": format, "file": _file(image)}
    if format == "qcow2":
        node["backing"] = None if backing is None else {"driver": "raw", "file": _file(backing)}
    return "json:" + msgspec.json.encode(node).decode()


def _file(path: Path) -> dict[str, str]:
    return {"driver": "host_device" if path.is_block_device() else "file", "filename": os.path.abspath(path)}


def _run(image: Path, words: Sequence[str], also_fine: Sequence[int] = ()) -> bytes:
    program = find_program("qemu-img")
    if program is None:
        raise ImageError("no qemu-img; run: apt-get install qemu-utils")
    done = subprocess.run(
        [program, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"LC_ALL": "C"},
        preexec_fn=_limit,
    )
    if done.returncode not in (0, *also_fine):
        raise ImageError(_reason(image, done.stderr.decode(errors="replace")))
    return done.stdout


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reason(image: Path, said: str) -> str:
    if '" lock' in said:
        return f"{image} or what it stands on is in use: shut down the guest, or end the program that holds it"
    first = (said.strip().splitlines() or ["qemu-img failed"])[0]
    return f"{image}: {_printable(re.sub(_OWN_NAMES, '', first))}"


def _printable(text: str) -> str:
    """A stranger's words, which may reach a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _json(image: Path, told: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = msgspec.json.decode(told, type=dict)
    except msgspec.DecodeError as error:
        raise ImageError(f"{image}: qemu-img's answer is unknown ({error}): is it QEMU's?") from error
    return answer
