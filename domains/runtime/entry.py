"""From a fresh jailed process to a role's own code."""

import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from domains.runtime.domain import Domain
from domains.runtime.tasks import task_tree
from kernel.abi import packet
from kernel.abi.codec import encode
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.log import Log, open_log
from kernel.abi.spawn import Identity
from kernel.abi.status import KernelBug

__all__ = ["rehearse", "run"]

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that wants the interpreter lock waits before it asks for it: control must not hold a data loop up
for CPython's own 5 ms."""

REHEARSAL_S = 1.0
"""For a role that does not end with its control channel."""

EXIT_ROLE_FAILED = 70
"""EX_SOFTWARE of sysexits.h: the role's own code raised."""


def run(role: str, identity: Identity, descriptors: dict[str, int], config: bytes, jail: str) -> NoReturn:
    """Run `role`, a module with `async def main(domain)`, to its end; the process ends with it, exit status 0 or 70.

    A role with a `prepare(descriptors, config)` has it called first, before there is a thread or a Trio run: it may
    fork, any number of times, and returns in each child, with how many there were before it.
    """
    module = importlib.import_module(role)
    life = module.prepare(descriptors, config) if hasattr(module, "prepare") else 0
    log = open_log(descriptors["log"])
    _dump_tasks_on_signal(log)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    status = 0
    try:
        log.info("domain.entered", role=role, jail=jail)
        domain = Domain(
            identity.name, identity.peer, descriptors["control"], log, config, descriptors, life
        )
        trio.run(module.main, domain, strict_exception_groups=True)
    except (OSError, KernelBug, Exception) as error:
        log.error("domain.failed", error=repr(error), traceback=traceback.format_exc()[-2500:])
        status = EXIT_ROLE_FAILED
    os._exit(status)


def rehearse(role: str, config: bytes) -> None:
    """Run a role ahead of its order, if it has a `REHEARSAL`: for a hypervisor that says that and hangs up. What `main`
    writes to on its way is this process's own memory then, and no page has to be copied while a guest waits.

    Such a role leaves nothing behind when its control channel ends, no thread either.
    """
    module = importlib.import_module(role)
    upcalls = getattr(module, "REHEARSAL", ())
    if not upcalls:
        return
    ours, theirs = packet.pair()
    with theirs, open(os.devnull, "wb") as nowhere:
        packet.send(theirs, encode(upcalls))
        theirs.shutdown(socket.SHUT_WR)
        log = open_log(nowhere.fileno())
        log.info("domain.entered", role=role, jail="")
        domain = Domain("rehearsal", Peer(DomId(0), Generation(0)), ours.detach(), log, config, {})
        trio.run(_act, module.main, domain, strict_exception_groups=True)


async def _act(main: Callable[[Domain], Awaitable[None]], domain: Domain) -> None:
    with trio.move_on_after(REHEARSAL_S):
        await main(domain)
    domain.close()


def _dump_tasks_on_signal(log: Log) -> None:
    """On SIGUSR2, which the hypervisor sends to a domain that hangs, log where each Trio task waits."""

    def dump(_number: int, _frame: object) -> None:
        log.warning("domain.tasks_dumped", tasks=task_tree())

    signal.signal(signal.SIGUSR2, dump)
