"""A native guest's program: from a descriptor to the function that is to run."""

import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

__all__ = ["MAX_PROGRAM_BYTES", "BadProgram", "Main", "describe", "load"]

MAX_PROGRAM_BYTES = 1 << 20

MODULE = "program"
"""Its name in `sys.modules`: not `__main__`, so that what stands behind `if __name__ == "__main__"` does not run."""

EXAMPLE = "async def main(domain)"

Main = Callable[[Any], Awaitable[object]]


class BadProgram(Exception):
    """It cannot be run: one line with its name, the place in it, what is wrong and what would be right."""


def load(descriptor: int, name: str) -> Main:
    """The `main` of a program. Its own code runs meanwhile, up to its last line. Raises BadProgram.

    `name` is for people alone: no file is looked for.
    """
    source = _read(descriptor, name)
    try:
        code = compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadProgram(f"{name}:{error.lineno or 1}: {error.msg}: mend it, then create the guest again") from error
    except ValueError as error:
        raise BadProgram(f"{name}: {error}: give a Python program") from error
    linecache.cache[name] = (len(source), None, source.decode(errors="replace").splitlines(keepends=True), name)
    module = sys.modules[MODULE] = ModuleType(MODULE)
    module.__file__ = name
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise BadProgram(f"{describe(error, name)}: it ended before there was a main to run") from error
    return _main_of(module, name)


def _read(descriptor: int, name: str) -> bytes:
    source = b""
    while part := os.pread(descriptor, MAX_PROGRAM_BYTES + 1 - len(source), len(source)):
        source += part
    if len(source) > MAX_PROGRAM_BYTES:
        raise BadProgram(f"{name}: more than {MAX_PROGRAM_BYTES} bytes: give a Python program")
    return source


def _main_of(module: ModuleType, name: str) -> Main:
    main: Main | None = getattr(module, "main", None)
    if main is None:
        raise BadProgram(f"{name}: there is no main: add {EXAMPLE}")
    if not inspect.iscoroutinefunction(main):
        raise BadProgram(f"{name}: main is no coroutine function: make it {EXAMPLE}")
    try:
        inspect.signature(main).bind(None)
    except TypeError as error:
        raise BadProgram(f"{name}: main takes other arguments ({error}): make it {EXAMPLE}") from error
    return main


def describe(error: BaseException, name: str) -> str:
    """What a program raised, in one line: the innermost place in its own file, and the first of a group's errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    said = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        what = f"exit status {said}" if isinstance(error.code, int) else said
    else:
        what = f"{type(error).__name__}{': ' if said else ''}{said}"
    return f"{name}:{lines[-1]}: {what}" if lines else f"{name}: {what}"
