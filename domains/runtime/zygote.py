"""A base zygote's life from exec to its last act: warm up, move into the template, serve.

`python -m domains.runtime.zygote --control FD [--tree PATH …] [--entry MODULE:FUNCTION]`

The base zygote has what every role may see; one forked from it for a role has the role's modules too, behind its wall.
The hypervisor starts it from its main thread: what dies with the hypervisor dies with that thread (PR_SET_PDEATHSIG).
"""

import argparse
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import Any

from domains.runtime import birth, clone, jail, libc, memory, mounts, trees
from domains.runtime.birth import Entry
from domains.runtime.libc import CLONE_NEWNS, CLONE_NEWUSER
from domains.runtime.zygote_loop import Zygote
from kernel.abi.spawn import FIRST_UID

__all__ = ["main"]

DEFAULT_ENTRY = "domains.runtime.entry"
NOT_FOR_DOMAINS = ("rich", "better_exceptions")
"""What structlog imports to be pretty on a terminal, 3.5 MB. A domain has no terminal."""
WARM = ("trio", "msgspec", "structlog", "orjson")

REHEARSALS = 10
"""Each function is specialised by the interpreter at its eighth call or so (PEP 659), which writes to its code."""

HIGHEST_DOMAIN_UID = FIRST_UID + 0x7FFF
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the control socket ends, as it does with the hypervisor. PDEATHSIG ends one that would not look."""
    options = _parser().parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=options.control)
    os.set_inheritable(options.control, False)
    entry = _warm_up(options.entry)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    host = _prepare(proc, [*trees.interpreter_trees(), *trees.project_trees(), *options.tree])
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    memory.settle(proc)
    Zygote(control, host, entry).serve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zygote", description="clones jailed domains for a hypervisor")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control socket")
    parser.add_argument("--tree", action="append", default=[], help="a further path that domains may read")
    parser.add_argument("--entry", default=DEFAULT_ENTRY, help="module with what a domain runs")
    return parser


def _warm_up(entry: str) -> Entry:
    """Import what every domain uses. The collector rests meanwhile: what is imported stays."""
    gc.disable()
    sys.dont_write_bytecode = True
    for name in NOT_FOR_DOMAINS:
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails at once (PEP 328's None)
    for name in WARM:
        importlib.import_module(name)
    for _ in range(REHEARSALS):
        birth.rehearse()
    module: Any = importlib.import_module(entry)
    return Entry(module.run, module.rehearse)


def _prepare(proc: int, paths: Iterable[str]) -> jail.Host:
    """Find out what this host grants, and go into the template where it grants mounts."""
    cover = trees.minimal_cover(paths)
    in_template = clone.succeeds(lambda: _enter_template(proc, cover))
    if in_template:
        _enter_template(proc, cover)
    namespaces = clone.namespaces_of_this_host() - (set() if in_template else {"mount"})
    _silence_standard_streams()
    own_uids = os.geteuid() == 0 and _maps(proc, HIGHEST_DOMAIN_UID)
    return jail.prepare(namespaces, own_uids, proc, cover)


def _enter_template(proc: int, cover: Iterable[str]) -> None:
    """Into a mount namespace and the template, through a user namespace for who may not make one without.

    Raises OSError, and not only where a namespace is refused: an AppArmor profile may let it be made and forbid every
    mount in it. There is no way back, so it is tried in a child first.
    """
    if "mount" in clone.namespaces_of_this_host():
        libc.unshare(CLONE_NEWNS)
    else:
        uid, gid = os.getuid(), os.getgid()
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNS)
        jail.write_maps(proc, uid, gid)
    mounts.enter_template(cover)


def _maps(proc: int, uid: int) -> bool:
    """Whether `uid` exists in this user namespace: in a container it may not."""
    with open(os.open("self/uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as table:
        rows = [tuple(map(int, row.split())) for row in table]
    return any(first <= uid < first + count for first, _, count in rows)


def _silence_standard_streams() -> None:
    """Input and output are nobody's; errors go where the hypervisor's go."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    main()
