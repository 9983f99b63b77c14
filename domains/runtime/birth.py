"""What a zygote's children do first: the one that becomes a domain, and the one that becomes a role's zygote."""

import gc
import importlib
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

import msgspec

from domains.runtime import jail, libc, memory, wall
from kernel.abi.spawn import Identity, JailLevel, SpawnRequest

__all__ = ["Entry", "Ready", "become_domain", "import_role", "level_of", "read_ready"]

Entry = Callable[[str, Identity, dict[str, int], bytes, str], NoReturn]
"""What a domain runs in its jail: role, identity, descriptors by name, config, level of the jail."""

EXIT_NOT_JAILED = 71
"""EX_OSERR of sysexits.h. The reason went through the pipe."""

_PR_SET_PDEATHSIG = 1
_MAX_WHY = 400


class Ready(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A child's one word to its zygote, through a pipe: all is done (no step), or which step failed and why."""

    step: str = ""
    why: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ready).decode


def read_ready(pipe: int) -> Ready:
    """Take the word from a pipe that poll says is readable. A child that died first left none: a failure too."""
    raw = os.read(pipe, 4096)
    return _decode(raw) if raw else Ready("jail", "the child died without a word")


def tell(pipe: int, ready: Ready) -> None:
    """Say the word and close the pipe."""
    os.write(pipe, _encode(ready))
    os.close(pipe)


def level_of(host: jail.Host) -> JailLevel:
    """What the host's jails amount to."""
    return "reduced" if host.missing else "full"


def become_domain(host: jail.Host, request: SpawnRequest, descriptors: list[int], pipe: int, entry: Entry) -> NoReturn:
    """Enter the jail and run the role; the process ends with it."""
    named = dict(zip(request.fd_names, descriptors, strict=True))
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        jail.enter(host, request.jail, request.identity, named, keep=(pipe,))
    except jail.JailFailed as failed:
        tell(pipe, Ready(failed.step, failed.why[:_MAX_WHY]))
        os._exit(EXIT_NOT_JAILED)
    tell(pipe, Ready())
    gc.enable()
    entry(request.role, request.identity, named, request.config, level_of(host))


def import_role(role: str, keep: Iterable[int], proc: int, pipe: int) -> None:
    """Turn this fork of the base zygote into the role's zygote: its code imported, behind its wall.

    The process has `keep` and its standard three descriptors afterwards, and ends with the hypervisor. When the import
    fails it says so through the pipe and exits.
    """
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    jail.close_all_but({*keep, pipe})
    try:
        wall.put_up(role)
        importlib.import_module(role)
    except Exception as error:  # whatever a role's import raises is the role's failure
        tell(pipe, Ready("import", f"{type(error).__name__}: {error}"[:_MAX_WHY]))
        os._exit(EXIT_NOT_JAILED)
    memory.settle(proc)
    tell(pipe, Ready())
