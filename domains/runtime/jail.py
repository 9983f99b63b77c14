"""The jail: what a child gives up between its clone and its role's first line.

A zygote finds out once what its host can do and prepares what can be (`prepare`); a child only enters (`enter`, then
`settle_in`).
The order matters: namespaces (at the clone) → mounts → ids → PDEATHSIG and dumpable, which a change of ids clears →
Landlock → seccomp → is anybody still there.
"""

import errno
import os
import resource
import select
import signal
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from domains.runtime import landlock, libc, mounts
from domains.runtime.clone import NAMESPACES
from domains.runtime.landlock import EXECUTE, READ, READ_FILE, WRITE_FILE, Rule
from domains.runtime.libc import CLONE_NEWUSER
from domains.runtime.policy import filter_for
from domains.runtime.seccomp import Filter
from kernel.abi.ids import DomId
from kernel.abi.spawn import CONTROL, FIRST_UID, STDERR, Jail, JailKind

__all__ = [
    "Host", "JailFailed", "can_be_entered_ahead", "close_all_but", "enter", "prepare", "refusal", "settle_in",
    "write_maps",
]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_STDERR_FILENO = 2
_ABOVE_ALL = 1 << 30
_WITHOUT_FILES = ("driver", "storage", "native")


class JailFailed(Exception):
    """A step that this host can do was refused to this child. There must be no child then."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")
        self.step = step
        self.why = why


@dataclass(frozen=True, slots=True)
class Host:
    """What this host can do, and what a zygote made ready for its children. The descriptors stay the zygote's."""

    own_uids: bool
    """Each domain gets a uid: the zygote is root."""
    namespaces: frozenset[str]
    clone_flags: int
    missing: tuple[str, ...]
    proc: int
    landlock_abi: int
    rules: tuple[Rule, ...]
    ruleset: int
    """Of the rules alone, for a child that can write nowhere; -1 without Landlock."""
    filters: Mapping[JailKind, Filter]

    def descriptors(self) -> tuple[int, ...]:
        """All that it holds open."""
        held = (self.proc, self.ruleset, *(rule.descriptor for rule in self.rules))
        return tuple(descriptor for descriptor in held if descriptor >= 0)


def prepare(namespaces: Iterable[str], own_uids: bool, proc: int, trees: Iterable[str]) -> Host:
    """Make ready what children share. The caller is in its template root already, if it has `mount`.

    `proc` is a descriptor of the host's /proc; `trees` are the read-only paths that a child may read and execute.
    """
    have = frozenset(namespaces)
    abi = landlock.abi_version()
    rules = (
        *(Rule(os.open(tree, os.O_PATH | os.O_CLOEXEC), READ | EXECUTE) for tree in trees),
        *(Rule(os.open(path, os.O_PATH | os.O_CLOEXEC), READ_FILE | WRITE_FILE) for path in mounts.DEVICES),
    )
    missing = [name for name in (*NAMESPACES, "user") if name not in have] + ([] if abi else ["landlock"])
    return Host(
        own_uids=own_uids,
        namespaces=have,
        clone_flags=sum(flag for name, flag in NAMESPACES.items() if name in have),
        missing=tuple(missing),
        proc=proc,
        landlock_abi=abi,
        rules=rules,
        ruleset=landlock.make_ruleset(abi, rules) if abi else -1,
        filters={
            "driver": (driver := filter_for("driver")),
            "dom0": driver,
            "native": driver,
            "storage": filter_for("storage"),
            "guest": filter_for("guest"),
        },
    )


def refusal(spec: Jail, names: Iterable[str]) -> str:
    """Why a jail cannot be as asked, in one line; empty when it can."""
    listed = list(names)
    if CONTROL not in listed:
        return f"no descriptor named {CONTROL}"
    if len(set(listed)) != len(listed):
        return "two descriptors of one name"
    if spec.kind in _WITHOUT_FILES and (spec.proc or spec.shm_bytes or spec.tmp_bytes or spec.run_bytes):
        return f"a {spec.kind} domain has no /proc and nothing that can be written"
    return ""


def can_be_entered_ahead(spec: Jail) -> bool:
    """Whether the next order's jail is known: that of a driver's next incarnation, whose rules name no file that only
    the order brings. The next guest is another domain."""
    return spec.kind not in ("guest", "native")


def enter(host: Host, spec: Jail, domid: DomId, files: Iterable[int] = ()) -> None:
    """Enter the jail for good; `settle_in` follows. The host's descriptors, which it needs for that, are closed on the
    way. `files`: what a guest was given open; a folder among them is where it can write.

    Raises JailFailed; the process is then half in its jail, and has to end.
    """
    uid = (spec.uid or FIRST_UID + domid) if host.own_uids else os.getuid()
    gid = (spec.uid or FIRST_UID + domid) if host.own_uids else os.getgid()
    writable: list[str] = []
    _do(
        ("mounts", lambda: writable.extend(mounts.mount_own(spec, uid, gid) if "mount" in host.namespaces else ())),
        ("limits", lambda: _limit(host, spec)),
        ("folder", lambda: _give_folder(host, spec, files, uid, gid)),
        ("ids", lambda: _change_ids(host, uid, gid)),
        ("user", lambda: _enter_user_namespace(host, uid, gid)),
        ("pdeathsig", _die_with_parent),
        ("landlock", lambda: _landlock(host, spec, writable, files)),
        ("seccomp", host.filters[spec.kind].install),
    )


def settle_in(descriptors: Mapping[str, int]) -> None:
    """What is left to do with the descriptors that an order brings. Raises JailFailed, as `enter` does.

    The hypervisor finds a child without an order by its process group, so it leaves that only now.
    """
    _do(
        ("session", lambda: _own_session(descriptors)),
        ("orphan", lambda: _look_for_hypervisor(descriptors[CONTROL])),
    )


def _do(*steps: tuple[str, Callable[[], object]]) -> None:
    for step, act in steps:
        try:
            act()
        except OSError as error:
            raise JailFailed(step, str(error)) from error


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but the standard three and `kept`."""
    previous = _STDERR_FILENO
    for descriptor in sorted(kept):
        os.closerange(previous + 1, descriptor)
        previous = descriptor
    os.closerange(previous + 1, _ABOVE_ALL)


def _own_session(descriptors: Mapping[str, int]) -> None:
    """Leave the zygote's process group and its standard error."""
    os.setsid()
    os.dup2(descriptors.get(STDERR, 0), _STDERR_FILENO)


def _limit(host: Host, spec: Jail) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: spec.nofile,
        resource.RLIMIT_AS: spec.memory_bytes or resource.RLIM_INFINITY,
    }
    if host.own_uids or "user" in host.namespaces:  # else it would count all that the hypervisor's user runs
        limits[resource.RLIMIT_NPROC] = spec.nproc
    if spec.shm_bytes:
        limits[resource.RLIMIT_FSIZE] = spec.shm_bytes
    for what, value in limits.items():
        resource.setrlimit(what, (value, value))
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)


def _give_folder(host: Host, spec: Jail, given: Iterable[int], uid: int, gid: int) -> None:
    if host.own_uids:
        for folder in _folders(spec, given):
            os.fchown(folder, uid, gid)


def _folders(spec: Jail, given: Iterable[int]) -> list[int]:
    return [d for d in given if spec.kind == "guest" and stat.S_ISDIR(os.fstat(d).st_mode)]


def _change_ids(host: Host, uid: int, gid: int) -> None:
    if host.own_uids:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _enter_user_namespace(host: Host, uid: int, gid: int) -> None:
    """Its own user namespace owns nothing: the mounts, pids and net of the jail belong to the one outside."""
    if "user" in host.namespaces:
        libc.unshare(CLONE_NEWUSER)
        libc.prctl(_PR_SET_DUMPABLE, 1)
        write_maps(host.proc, uid, gid)
    libc.capset_none()


def write_maps(proc: int, uid: int, gid: int) -> None:
    """Map this process's ids to themselves in the user namespace that it has just made (user_namespaces(7))."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        file = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _die_with_parent() -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 1)


def _look_for_hypervisor(control: int) -> None:
    """PDEATHSIG tells nothing of a parent that died before it was set; its end of the control socket does."""
    poll = select.poll()
    poll.register(control, 0)
    if poll.poll(0):
        raise OSError(errno.EPIPE, "the hypervisor is gone")


def _landlock(host: Host, spec: Jail, writable: list[str], files: Iterable[int]) -> None:
    if host.landlock_abi:
        if spec.kind == "guest" or spec.proc or writable:
            ruleset = _own_ruleset(host, spec, writable, files)
        else:
            ruleset = host.ruleset
        landlock.restrict_self(ruleset)
        if ruleset != host.ruleset:
            os.close(ruleset)
    for descriptor in host.descriptors():
        os.close(descriptor)


def _own_ruleset(host: Host, spec: Jail, writable: list[str], given: Iterable[int]) -> int:
    """Rules for a child with mounts of its own; a guest may also run and read the files that it was given open, and
    write in a folder."""
    own = [Rule(os.open(path, os.O_PATH), landlock.all_access(host.landlock_abi)) for path in writable]
    if spec.proc:
        own.append(Rule(os.open("/proc", os.O_PATH), READ))
    files = [d for d in given if spec.kind == "guest" and stat.S_ISREG(os.fstat(d).st_mode) and not _is_memfd(d)]
    given_rules = [Rule(file, READ_FILE | EXECUTE) for file in files]
    given_rules += [Rule(folder, landlock.all_access(host.landlock_abi)) for folder in _folders(spec, given)]
    try:
        return landlock.make_ruleset(host.landlock_abi, (*host.rules, *own, *given_rules))
    finally:
        for rule in own:
            os.close(rule.descriptor)


def _is_memfd(descriptor: int) -> bool:
    """Landlock knows no path to a memfd, needs no rule for it, and refuses one."""
    return os.fstat(descriptor).st_nlink == 0
