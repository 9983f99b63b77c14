"""The role of a native guest: a Python program in a jail of its own, against the hypercall ABI."""

import contextlib
import os
import sys
import traceback
from typing import NamedTuple

import msgspec
import trio

from domains.native.domain import Domain
from domains.native.program import BadProgram, Main, describe, load
from domains.runtime import domain as runtime
from domains.runtime.threads import share_one_arena
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.hypercalls import SchedShutdown
from kernel.abi.packet import close_all
from kernel.abi.roles import NativeStart
from kernel.abi.upcalls import ShutdownRequested

__all__ = ["main"]

STDOUT, STDERR = 1, 2

EXIT_FAILED = 70
"""EX_SOFTWARE of sysexits.h."""


class _End(NamedTuple):
    """How a program ended, for the hypervisor."""

    reason: ShutdownReason
    detail: str


async def main(domain: runtime.Domain) -> None:
    """Run the program to its end, and say what that was."""
    start = msgspec.msgpack.decode(domain.config, type=NativeStart)
    share_one_arena()
    _take_console(domain.descriptors["console"])
    async with runtime.open_domain(domain):
        try:
            end = await _run(domain, start)
        except Exception as error:
            end = _crash(error, _name(start))
        await _say_end(domain, end)


async def _say_end(domain: runtime.Domain, end: _End) -> None:
    """All that it printed first."""
    _flush_console()
    await domain.call(SchedShutdown, reason=end.reason, detail=end.detail[:512])


async def _run(domain: runtime.Domain, start: NativeStart) -> _End:
    try:
        function = load(domain.descriptors["program"], _name(start))
    except BadProgram as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(error, file=sys.stderr)
        return _End(ShutdownReason.CRASH, str(error))
    finally:
        os.close(domain.descriptors["program"])
    asked = _Asked()
    async with trio.open_nursery() as nursery:
        ours: trio.Nursery = await nursery.start(_carry, domain, _name(start))
        guest = Domain(domain, ours, start)
        ours.start_soon(_take_upcalls, domain, guest, asked)
        await domain.started()
        end = await _follow(function, guest, _name(start), asked)
        nursery.cancel_scope.cancel()
    return end


async def _carry(
    domain: runtime.Domain, name: str, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep what the program stands on. When that fails, as where its memory leaves no room for a ring, the guest ends
    with it at once: the program may be waiting, and not to be cancelled, for what will never come."""
    try:
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()
    except Exception as error:
        try:
            await _say_end(domain, _crash(error, name))
        finally:
            os._exit(EXIT_FAILED)


class _Asked:
    """What the administrator asks for: the program is cancelled."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.reason: ShutdownReason | None = None

    def end(self, reason: ShutdownReason) -> None:
        self.reason = reason
        self.scope.cancel()


async def _follow(function: Main, guest: Domain, name: str, asked: _Asked) -> _End:
    """Run the program's `main`. What it raises goes to its console, and is the reason of its crash."""
    try:
        with asked.scope:
            await function(guest)
    except SystemExit as error:
        if error.code not in (None, 0):
            print(describe(error, name), file=sys.stderr)
            return _End(ShutdownReason.CRASH, describe(error, name))
    except BaseException as error:
        if not isinstance(error, Exception) and _is_cancelled(error):
            raise
        return _crash(error, name)
    if asked.reason is not None:
        return _End(asked.reason, "it was asked to")
    return _End(ShutdownReason.POWEROFF, "main returned")


def _crash(error: BaseException, name: str) -> _End:
    traceback.print_exception(error)
    return _End(ShutdownReason.CRASH, describe(error, name))


def _name(start: NativeStart) -> str:
    """What the program is called where its places are told."""
    return os.path.basename(start.config.program or "")


def _is_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)


async def _take_upcalls(domain: runtime.Domain, guest: Domain, asked: _Asked) -> None:
    async for message, descriptors in domain.upcalls:
        try:
            if isinstance(message, ShutdownRequested):
                asked.end(message.reason)
            else:
                await guest.take(message, descriptors)
        finally:
            close_all(descriptors)


def _take_console(pipe: int) -> None:
    """What the program prints goes to its console, line by line; and so does what it writes as errors."""
    os.set_blocking(pipe, True)
    os.dup2(pipe, STDOUT)
    os.dup2(pipe, STDERR)
    os.close(pipe)
    sys.stdout, sys.stderr = (  # the zygote's own were made for files of another kind
        os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        for number in (STDOUT, STDERR)
    )


def _flush_console() -> None:
    """An incarnation ends without the interpreter's own end, which would do it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the keeper is gone, or the program has closed it
            stream.flush()
