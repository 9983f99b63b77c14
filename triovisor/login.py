"""`tv login`: an interactive shell with the verbs of `tv`, as an administrator has it who is logged in to Dom0.

Lines are edited by readline, with completion of verbs, options and domains, and a history that lasts. Between pipes it
reads a verb a line, and ends with the input.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["HISTORY", "candidates", "run_shell"]

PROMPT = "dom0# "
HISTORY_LINES = 1000
HISTORY = Path("~/.local/state/triovisor/history")

_LEAVE = ("exit", "logout", "quit")

Run = Callable[[list[str]], int]
"""Does one verb with its words, and gives its exit status."""

Complete = Callable[[list[str], str], Sequence[str]]
"""What may stand after these words, given how it begins."""


def run_shell(run: Run, complete: Complete) -> int:
    """Until the end of input, or exit. The status of the last verb."""
    status = 0
    with _edited_lines(complete):
        while True:
            try:
                words = shlex.split(input(PROMPT if sys.stdin.isatty() else ""), comments=True)
            except EOFError:
                return status
            except KeyboardInterrupt:
                print()
                continue
            except ValueError as error:
                print(f"tv: {error}: close it", file=sys.stderr)
                status = 2
                continue
            if words and words[0] in _LEAVE:
                return status
            if words:
                status = run(words[1:] if words[0] == "tv" else words)


def candidates(complete: Complete, line: str, word: str) -> list[str]:
    """What readline may put in the place of `word`, the last one of `line`."""
    try:
        words = shlex.split(line[: len(line) - len(word)])
    except ValueError:
        return []
    words = words[1:] if words[:1] == ["tv"] else words
    found = list(complete(words, word))
    if not words:
        found += [leave for leave in _LEAVE if leave.startswith(word)]
    return [f"{each} " for each in sorted(found)]


@contextlib.contextmanager
def _edited_lines(complete: Complete) -> Iterator[None]:
    """readline on a terminal, with the history of earlier times, which is for the user's eyes alone."""
    if not sys.stdin.isatty():
        yield
        return
    import readline

    history = Path(os.environ.get("TRIOVISOR_HISTORY") or HISTORY).expanduser()
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    found: list[str] = []

    def completer(word: str, number: int) -> str | None:
        if number == 0:
            found[:] = candidates(complete, readline.get_line_buffer()[: readline.get_endidx()], word)
        return found[number] if number < len(found) else None

    readline.set_completer(completer)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
            history.chmod(0o600)
