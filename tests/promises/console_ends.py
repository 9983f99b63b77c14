"""`tv console` as a process of its own, on a terminal of the test's or between pipes."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.promises.events import wait_until

__all__ = ["Piped", "Screen", "on_a_terminal", "piped", "tv_on_a_terminal"]

TV = [sys.executable, "-m", "triovisor.cli"]


class Screen:
    """One `tv console` on a terminal: what it shows, and a keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self.terminal = terminal
        self.shown = b""

    def read(self, wait_s: float = 0.05) -> bool:
        """Take what it shows now. False at its end."""
        while select.select([self.terminal], [], [], wait_s)[0]:
            wait_s = 0
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.shown += data
        return True

    def wait(self, text: bytes, deadline_s: float = 20.0) -> None:
        """Until it shows this, which is taken from `shown`, with all before it."""
        end = time.monotonic() + deadline_s
        while text not in self.shown:
            assert self.read() or text in self.shown, f"ended with {self.shown[-500:]!r} before {text!r}"
            assert time.monotonic() < end, f"no {text!r} in {self.shown[-500:]!r}"
        self.shown = self.shown[self.shown.index(text) + len(text) :]

    def wait_all(self, *texts: bytes) -> None:
        """Until it shows all of these, in any order."""
        wait_until(lambda: self.read() and all(text in self.shown for text in texts), f"{texts} on the screen")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        while keys:
            keys = keys[os.write(self.terminal, keys) :]

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def local_modes(self) -> int:
        """`c_lflag` of the terminal."""
        modes: int = termios.tcgetattr(self.terminal)[3]
        return modes

    def is_raw(self) -> bool:
        """Neither echo, nor lines, nor signals."""
        return not self.local_modes() & (termios.ECHO | termios.ICANON | termios.ISIG)

    def end(self) -> int:
        """Its exit status, once it has ended."""
        wait_until(lambda: not self.read() or self.process.poll() is not None, "tv console ends")
        return self.process.wait(20)


@contextlib.contextmanager
def on_a_terminal(run: Path, guest: str, *options: str, rows: int = 24, columns: int = 80) -> Iterator[Screen]:
    """A terminal with `tv console` on it, killed at the end if it is still there."""
    with tv_on_a_terminal(run, "console", guest, *options, rows=rows, columns=columns) as screen:
        wait_until(screen.is_raw, "the terminal is raw")
        yield screen


@contextlib.contextmanager
def tv_on_a_terminal(
    run: Path, *words: str, rows: int = 24, columns: int = 80, environment: Mapping[str, str] | None = None
) -> Iterator[Screen]:
    """A terminal with some `tv` on it, killed at the end if it is still there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with subprocess.Popen(
        [*TV, "--run", str(run), *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0), env={**os.environ, **(environment or {})},
    ) as process:  # fmt: skip
        try:
            yield Screen(process, ours)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            os.close(theirs)
            os.close(ours)


class Piped:
    """One `tv console` between pipes: a file has what it prints."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output

    def type(self, keys: bytes) -> None:
        """Give it input; waits until it takes it."""
        assert self.process.stdin is not None
        self.process.stdin.write(keys)
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """End its input. Its exit status, and what it said of its end."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


@contextlib.contextmanager
def piped(run: Path, guest: str, output: Path, *options: str) -> Iterator[Piped]:
    """`tv console` between pipes, killed at the end if it is still there."""
    command = [*TV, "--run", str(run), "console", guest, *options]
    with (
        output.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE) as process,
    ):
        try:
            yield Piped(process, output)
        finally:
            if process.poll() is None:
                process.kill()
