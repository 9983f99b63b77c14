"""The folder in which a run breaks its copy of the project: it goes with the run, or with the next one."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

__all__ = ["TREE", "folder_for_a_copy", "stopped_by_signals"]

PREFIX = "triovisor-mutants."
TREE = "tree"
"""The copy in such a folder. One without it has just been made, and may not be locked yet."""


@contextlib.contextmanager
def folder_for_a_copy() -> Iterator[Path]:
    """A folder of one's own, locked for as long as it is used. Those that a killed run left behind are removed."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as path, _locked(Path(path)):
        yield Path(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether it could be had: False where a run that lives has it. The lock goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.geteuid() or not (folder / TREE).is_dir():
                continue
            with _locked(folder) as ours:
                if ours:
                    shutil.rmtree(folder)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP, unless they are ignored (nohup), end the run as Ctrl-C does: what it has made is taken away
    first."""

    def stop(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            signal.signal(number, handler if handler is signal.SIG_IGN else stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
