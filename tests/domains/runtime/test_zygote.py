"""Who lives and who dies: hypervisor, zygotes, children."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.abi import packet
from kernel.abi.ids import RequestId
from kernel.abi.spawn import CONTROL, Jail, SpawnFailed, ZygoteRequest
from tests.domains.runtime.stand_in import (
    PATIENCE_S,
    ROOT,
    Zygote,
    fork_role,
    spawn_request,
    start_base,
    wait_readable,
)

DRIVER = Jail("driver")


@pytest.fixture
def base() -> Iterator[Zygote]:
    zygote = start_base()
    yield zygote
    zygote.close()


@pytest.fixture
def role(base: Zygote) -> Iterator[Zygote]:
    zygote = fork_role(base)
    yield zygote
    zygote.close()


def kill_zygote(zygote: Zygote) -> None:
    signal.pidfd_send_signal(zygote.pidfd, signal.SIGKILL)
    wait_readable(zygote.pidfd, "death of the zygote")


def failure(zygote: Zygote, jail: Jail, names: tuple[str, ...] = (CONTROL,)) -> tuple[SpawnFailed, int]:
    """The answer to a request that cannot be met."""
    ours, theirs = packet.pair()
    with ours, theirs:
        answer, pidfd = zygote.ask(spawn_request("who", jail, names), [theirs.fileno()] * len(names))
    assert isinstance(answer, SpawnFailed), answer
    return answer, pidfd


def wait_spare(zygote_pid: int) -> int:
    """Pid of the spare: the other process of the zygote's process group."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == zygote_pid and stat.parent.name != str(zygote_pid) and fields[0] != "Z":
                return int(stat.parent.name)
        select.select([], [], [], 0.01)
    pytest.fail("no spare")


def pid_of(pidfd: int) -> int:
    rows = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("Pid:")).split()[1])


def reap(pidfd: int) -> None:
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


def test_children_outlive_their_zygote_and_their_parent_reaps_them(role):
    child = role.spawn("who", DRIVER)
    child.report()
    kill_zygote(role)
    assert not select.select([child.pidfd], [], [], 0)[0], "the child lives"
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    death = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    assert death is not None
    assert death.si_status == signal.SIGKILL


def test_a_new_zygote_of_the_role_can_be_forked_after_the_death_of_one(base, role):
    kill_zygote(role)
    second = fork_role(base)
    assert second.probe("who", DRIVER)["pid"] == 1
    second.close()


def test_a_spare_becomes_the_next_child(role):
    spare = wait_spare(pid_of(role.pidfd))
    assert role.spawn("who", DRIVER).spawned.pid == spare


def is_jailed(pid: int) -> bool:
    """Whether a filter of system calls is installed: the last step of the jail."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return "Seccomp:\t2" in rows


def wait_jailed_spare(zygote_pid: int) -> int:
    spare = wait_spare(zygote_pid)
    deadline = time.monotonic() + PATIENCE_S
    while not is_jailed(spare):
        assert time.monotonic() < deadline, "the spare is in no jail"
        select.select([], [], [], 0.01)
    return spare


def test_a_spare_waits_in_the_jail_of_the_last_child_and_becomes_its_next_incarnation(role):
    first = role.spawn("who", DRIVER, domid=7)
    spare = wait_jailed_spare(pid_of(role.pidfd))
    second = role.spawn("who", DRIVER, domid=7)
    assert second.spawned.pid == spare
    assert second.report() == first.report()


def test_a_spare_in_a_jail_becomes_no_other_domain(role):
    role.spawn("who", DRIVER, domid=7)
    spare = wait_jailed_spare(pid_of(role.pidfd))
    assert role.spawn("who", DRIVER, domid=8).spawned.pid != spare
    assert role.spawn("who", Jail("driver", nofile=100), domid=7).spawned.pid != spare
    assert role.spawn("who", DRIVER, domid=7).spawned.pid == spare


def test_a_spare_for_guests_waits_outside_since_its_order_names_its_files(role):
    guest = Jail("guest", tmp_bytes=1 << 20)
    role.spawn("who", guest, domid=7)
    spare = wait_spare(pid_of(role.pidfd))
    select.select([], [], [], 0.1)
    assert not is_jailed(spare)
    assert role.spawn("who", guest, domid=8).spawned.pid == spare


def test_a_killed_spare_costs_nothing(role):
    zygote_pid = pid_of(role.pidfd)
    spare = wait_spare(zygote_pid)
    os.kill(spare, signal.SIGKILL)
    os.waitid(os.P_PID, spare, os.WEXITED)
    assert role.probe("who", DRIVER)["pid"] == 1


def test_a_spare_ends_with_its_zygote_and_is_reaped_by_process_group(base):
    role = fork_role(base)
    zygote_pid = pid_of(role.pidfd)
    wait_spare(zygote_pid)
    role.close()
    reaped = os.waitid(os.P_PGID, zygote_pid, os.WEXITED)
    assert reaped is not None
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_PGID, zygote_pid, os.WEXITED)


def test_a_burst_of_requests_is_answered_one_for_one(role):
    children = [role.spawn("who", DRIVER, domid=domid) for domid in range(1, 9)]
    assert len({child.report()["ids"][0] for child in children}) in (1, 8)
    assert len({child.spawned.pid for child in children}) == 8


@pytest.mark.parametrize(
    ("jail", "step"),
    [
        (Jail("driver", cpus=(8191,)), "limits"),
        (Jail("guest", shm_bytes=(1 << 63) - 1, cpus=(8191,)), "limits"),
    ],
)
def test_a_failure_in_the_jail_names_its_step_and_leaves_nothing(base, jail, step):
    answer, pidfd = failure(base, jail)
    assert (answer.step, answer.born) == (step, True)
    assert answer.why
    reap(pidfd)


@pytest.mark.parametrize(
    ("jail", "names", "why"),
    [
        (Jail("driver", proc=True), (CONTROL,), "a driver domain has no /proc"),
        (Jail("driver", tmp_bytes=4096), (CONTROL,), "nothing that can be written"),
        (Jail("native", run_bytes=4096), (CONTROL,), "a native domain has no /proc and nothing that can be written"),
        (DRIVER, ("log",), "no descriptor named control"),
        (DRIVER, (CONTROL, CONTROL), "two descriptors of one name"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_before_the_clone(base, jail, names, why):
    answer, pidfd = failure(base, jail, names)
    assert (answer.step, answer.born, pidfd) == ("request", False, -1)
    assert why in answer.why


def test_a_child_whose_hypervisor_has_gone_fails_in_its_jail(base):
    ours, theirs = packet.pair()
    ours.close()
    with theirs:
        answer, pidfd = base.ask(spawn_request("who", DRIVER, (CONTROL,)), [theirs.fileno()])
    assert isinstance(answer, SpawnFailed)
    assert answer.step == "orphan"
    reap(pidfd)


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ("no.such.module", "ModuleNotFoundError"),
        ("triovisor.cli", "ModuleNotFoundError"),
        ("tests.domains.runtime.trespasser", "may not import kernel.core"),
    ],
)
def test_a_role_that_cannot_be_imported_or_trespasses_fails_by_name(base, role, why):
    ours, theirs = packet.pair()
    with ours, theirs:
        answer, pidfd = base.ask(ZygoteRequest(RequestId(3), role), [theirs.fileno()])
    assert isinstance(answer, SpawnFailed)
    assert answer.step == "import"
    assert why in answer.why
    reap(pidfd)


HYPERVISOR = """
import sys, time
from tests.domains.runtime.stand_in import *
base = start_base(())
role = fork_role(base)
children = [role.spawn("who", Jail("driver")), role.spawn("who", Jail("guest", proc=True, shm_bytes=1 << 20))]
for child in children:
    child.report()
print(*[child.spawned.pid for child in children], flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_hypervisor_that_was_killed():
    mounts = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen([sys.executable, "-c", HYPERVISOR], cwd=ROOT, stdout=subprocess.PIPE) as hypervisor:
        assert hypervisor.stdout is not None
        pidfds = [os.pidfd_open(int(pid)) for pid in hypervisor.stdout.readline().split()]
        hypervisor.kill()
    assert len(pidfds) == 2
    for pidfd in pidfds:
        wait_readable(pidfd, "death after the hypervisor's")
        os.close(pidfd)
    assert Path("/proc/self/mountinfo").read_text() == mounts
