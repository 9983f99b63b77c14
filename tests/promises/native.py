"""Native guests for the tests: programs written by the test, and what they said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel.abi.guest_config import DiskConfig, GuestConfig
from tests.promises.events import Event, wait_until
from tests.promises.lab import Lab

__all__ = ["console_of", "create", "last_end", "native", "wait_said"]


def native(
    folder: Path, name: str, text: str, *images: Path, args: Sequence[str] = (), access: str = "rw", **settings: Any
) -> GuestConfig:
    """A native guest whose program has that text."""
    program = folder / f"{name}.py"
    program.write_text(text)
    disks = [
        DiskConfig(target=str(image), vdev=f"vd{letter}", access=access)  # type: ignore[arg-type]
        for letter, image in zip("abcdefghijklmnop", images, strict=False)
    ]
    return GuestConfig(name=name, type="native", program=str(program), args=list(args), disk=disks, **settings)


def create(lab: Lab, config: GuestConfig) -> None:
    lab.client.create(config)
    lab.note_vbds()


def console_of(lab: Lab, name: str) -> str:
    """All that a guest's incarnations printed; the keeper has it within milliseconds."""
    return lab.client.dmesg(name).decode()


def wait_said(lab: Lab, name: str, words: str) -> str:
    """Its console, once it has those words."""
    said: str = wait_until(lambda: text if words in (text := _console_file(lab, name)) else "", f"{name} says {words}")
    return said


def _console_file(lab: Lab, name: str) -> str:
    try:
        return (lab.run / "console" / f"{name}.log").read_text()
    except FileNotFoundError:
        return ""


def last_end(lab: Lab, name: str, since: int = 0) -> Event:
    """`guest.ended` of a guest, waited for."""
    wait_until(lambda: lab.log.all("guest.ended", since, name=name), f"an end of {name}")
    return lab.log.all("guest.ended", since, name=name)[-1]
