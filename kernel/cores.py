"""Cores of guests' memory: files in the run's folder, `core/NAME.GENERATION.NUMBER.core`.

An actor writes one into a file that the hypervisor made; no byte of it passes through here. While it is not whole it
has another name, and what never becomes whole is removed.
"""

import os
from pathlib import Path
from typing import Any

from kernel.abi.status import Refused, Status
from kernel.abi.upcalls import CoreRequested
from kernel.core_file import Core
from kernel.machine import Guest, Machine
from kernel.orders import carry_out, check_runs_linux

__all__ = ["dump", "open_core"]

KEPT = 4
"""Cores of one guest's name. The oldest goes: a guest that crashes every hour must not fill the disk."""

DUMP_S = 120.0
"""For a guest's memory to be written, 64 GiB at most, of which only what was touched."""


def open_core(machine: Machine, guest: Guest, generation: int) -> Core:
    """For an incarnation that is to leave a core when it ends, or is asked for one. Refuses ENOSPC."""
    folder = machine.run.path / "core"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _forget_oldest(folder, guest.config.name)
        return Core(folder, f"{guest.config.name}.{generation}")
    except OSError as error:
        raise Refused(Status.ENOSPC, f"{error.filename}: {error.strerror}: make room for a core there") from error


async def dump(machine: Machine, guest: Guest) -> dict[str, Any]:
    """Have a living guest's memory written (`DomctlDumpCore`)."""
    check_runs_linux(guest, "kernel whose memory could be dumped")
    if guest.dumping:
        raise Refused(Status.EBUSY, f"guest {guest.config.name}: a core of it is being written: wait for that")
    core, guest.dumping = open_core(machine, guest, guest.record.generation), True
    try:
        await carry_out(machine, guest, CoreRequested, DUMP_S, (os.dup(core.descriptor),))
    finally:
        guest.dumping = False
        path = core.keep()
    if path is None:
        raise Refused(Status.EIO, f"guest {guest.config.name}: its actor wrote no core: see its log")
    size = path.stat().st_size
    machine.log.info("guest.core_dumped", name=guest.config.name, path=str(path), bytes=size)
    return {"path": str(path), "bytes": size}


def _forget_oldest(folder: Path, name: str) -> None:
    """A name may hold dots: behind it are always the generation and the number."""
    cores = [path for path in folder.glob("*.core") if path.name.rsplit(".", 3)[0] == name]
    for path in sorted(cores, key=lambda path: path.stat().st_mtime)[: -KEPT + 1]:
        path.unlink(missing_ok=True)
