"""What ends a guest whole where no PID namespace does: in the reduced jail.

Death reaches only a domain's first process there, the reaper: from the hypervisor, or through PDEATHSIG from the
hypervisor's own. The undertaker is a child of the reaper's that waits for that.
"""

import contextlib
import ctypes
import os
import signal
import struct
from typing import NoReturn

from domains.runtime import libc
from domains.runtime.jail import close_all_but

__all__ = ["Undertaker", "end_group"]

NAME = b"undertaker"
"""As ps(1) shows it, beside a reaper and an actor that run the same program."""

_PR_SET_NAME = 15
_GROUP = struct.Struct("=i")


class Undertaker:
    """The reaper's hold on it: the last writing end of a pipe. Who else has that end lets go of it, or executes."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    @classmethod
    def start(cls) -> "Undertaker":
        """Fork it. The caller leads a process group of its own, which ends with the caller from now on."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _take_name()
            close_all_but([reading])
            _wait_and_end_all(reading)
        os.close(reading)
        return cls(pid, writing)

    def let_go(self) -> None:
        """In another child of the reaper's: it is not to keep the undertaker waiting."""
        os.close(self._pipe)

    def watch(self, group: int) -> None:
        """A process group that is to end as well; 0: there is none any more."""
        os.write(self._pipe, _GROUP.pack(group))


def end_group(group: int) -> None:
    """Kill all of a process group that are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _take_name() -> None:
    name = ctypes.create_string_buffer(NAME)
    libc.prctl(_PR_SET_NAME, libc.address_of(name))


def _wait_and_end_all(pipe: int) -> NoReturn:
    group = 0
    while told := os.read(pipe, _GROUP.size):
        (group,) = _GROUP.unpack(told)
    if group:
        end_group(group)
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)
