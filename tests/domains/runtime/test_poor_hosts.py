"""Hosts that refuse a part of what a jail is made of."""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from domains.runtime import landlock
from kernel.abi.spawn import Jail
from tests.domains.runtime.stand_in import NOBODY, Zygote, as_nobody, fork_role, start_base
from tests.not_possible import not_possible

NO_CLONE3 = """
import errno, os, sys
from domains.runtime import libc, seccomp
libc.prctl(38, 1)
seccomp.assemble({435: seccomp.errno(errno.ENOSYS)}, default=seccomp.ALLOW, newest=4096).install()
os.execv(sys.argv[1], sys.argv[1:])
"""
NO_MOUNT = """
import errno, os, sys
from domains.runtime import libc, seccomp
libc.prctl(38, 1)
seccomp.assemble({165: seccomp.errno(errno.EACCES)}, default=seccomp.ALLOW, newest=4096).install()
os.execv(sys.argv[1], sys.argv[1:])
"""
NO_NAMESPACES = """
echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$0" "$@"
"""


@contextmanager
def zygote_under(prefix: Sequence[str]) -> Iterator[Zygote]:
    base = start_base(prefix)
    role = fork_role(base)
    yield role
    role.close()
    base.close()


def test_where_a_filter_knows_no_clone3_clone_does_it():
    with zygote_under([sys.executable, "-c", NO_CLONE3]) as zygote:
        child = zygote.spawn("who", Jail("driver"))
        assert child.report()["pid"] == 1
        assert child.spawned.jail == "full"


def test_where_a_profile_lets_namespaces_be_made_and_forbids_mounts_the_jail_is_reduced():
    """As AppArmor does it on Ubuntu, for an ordinary user."""
    user = as_nobody() if os.geteuid() == 0 else []
    with zygote_under([*user, sys.executable, "-c", NO_MOUNT]) as zygote:
        child = zygote.spawn("who", Jail("driver"))
        assert child.report()["jail"] == "reduced"
        assert "mount" in child.spawned.missing


@pytest.fixture(scope="module")
def reduced() -> Iterator[Zygote]:
    """A zygote on a host that makes no namespaces for an ordinary user."""
    user = as_nobody() if os.geteuid() == 0 else []
    with zygote_under([*user, "unshare", "--user", "--map-root-user", "sh", "-c", NO_NAMESPACES]) as zygote:
        yield zygote


def test_a_host_without_namespaces_gives_the_reduced_jail_and_says_so(reduced):
    child = reduced.spawn("who", Jail("driver"))
    assert child.spawned.jail == "reduced"
    assert child.spawned.missing == ("pid", "mount", "net", "ipc", "user")
    assert child.report()["jail"] == "reduced"


def test_the_reduced_jail_still_has_filter_landlock_and_limits(reduced):
    calls = reduced.probe("calls", Jail("driver"))
    assert {calls[name] for name in ("ptrace", "mount", "io_uring_setup", "execve", "fork")} == {"EPERM"}
    files = reduced.probe("files", Jail("driver"))
    assert set(files["read"].values()) <= {"EACCES", "ENOENT"}
    assert set(files["write"].values()) <= {"EACCES", "EROFS", "ENOENT"}
    assert reduced.probe("limits", Jail("driver", nofile=40))["descriptors"] == "EMFILE"


def test_in_the_reduced_jail_threads_are_not_counted_with_all_that_the_user_runs(reduced):
    assert reduced.probe("still_works", Jail("driver", nproc=1))["thread"] == [1]


def test_in_the_reduced_jail_a_guest_writes_in_the_folder_that_it_is_given_and_nowhere_else(reduced):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        report = reduced.probe("writes_in_folder", Jail("guest", proc=True), folder=folder)
        os.close(folder)
    assert report == {"inside": "ok", "beside": "EACCES", "jail": "reduced"}


def test_in_the_reduced_jail_no_signal_leaves(reduced):
    if landlock.abi_version() < 6:
        not_possible("signals held in by Landlock need Linux 6.12")
    sibling = reduced.spawn("who", Jail("driver")).spawned.pid
    assert set(reduced.signal_from_inside([sibling, os.getpid()]).values()) == {"EPERM"}
