"""Each forbidden act, tried inside a real jail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.abi.spawn import FIRST_UID, Jail
from tests.domains.runtime.roles import SYSCALLS
from tests.domains.runtime.stand_in import Zygote

MIB = 1 << 20
DRIVER, NATIVE = Jail("driver"), Jail("native")
GUEST = Jail("guest", proc=True, shm_bytes=4 * MIB, tmp_bytes=MIB, run_bytes=MIB)
TRIED_BY_GUESTS = SYSCALLS.keys() - {"ptrace", "io_setup", "fork", "execve", "execveat"}


def test_the_host_gives_the_full_jail(zygote: Zygote):
    child = zygote.spawn("who", DRIVER)
    assert (child.spawned.jail, child.spawned.missing) == ("full", ())
    assert child.report()["jail"] == "full"


def test_a_domain_is_pid_1_and_nobody_else_of_its_host(zygote: Zygote):
    child = zygote.spawn("who", DRIVER, domid=7)
    report = child.report()
    uid = FIRST_UID + 7 if zygote.own_uids else int(child.status()["Uid"].split()[0])
    assert report["pid"] == 1
    assert report["ids"] == [uid] * 6
    assert child.status()["Uid"].split() == [str(uid)] * 4
    assert uid != 0


def test_a_domain_has_no_capability_and_gains_none(zygote: Zygote):
    child = zygote.spawn("who", DRIVER)
    child.report()
    status = child.status()
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_domain_of_root_gets_the_uid_it_was_given(zygote: Zygote):
    child = zygote.spawn("who", Jail("driver", uid=123456))
    expected = 123456 if zygote.own_uids else os.stat(f"/proc/{child.spawned.pid}").st_uid
    assert child.report()["ids"] == [expected] * 6


@pytest.mark.parametrize("kind", ["driver", "dom0", "native"])
def test_all_but_linux_make_no_forbidden_call(zygote: Zygote, kind):
    report = zygote.probe("calls", Jail(kind))
    expected = {"clone3": "ENOSYS", "a call not yet invented": "ENOSYS"}
    assert {name: report[name] for name in SYSCALLS} == {name: expected.get(name, "EPERM") for name in SYSCALLS}


def test_a_guest_makes_no_call_that_leads_out(zygote: Zygote):
    report = zygote.probe("calls", GUEST)
    expected = {"clone3": "ENOSYS", "a call not yet invented": "ENOSYS"}
    assert {name: report[name] for name in TRIED_BY_GUESTS} == {
        name: expected.get(name, "EPERM") for name in TRIED_BY_GUESTS
    }


@pytest.mark.parametrize("jail", [DRIVER, NATIVE], ids=["driver", "native"])
def test_a_driver_or_program_makes_no_socket_but_a_pair(zygote: Zygote, jail):
    report = zygote.probe("sockets", jail)
    refused = ("inet", "netlink", "unix", "inet pair", "packet")
    assert {name: report[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert report["pair"] == "ok"


def test_a_guest_makes_unix_sockets_alone(zygote: Zygote):
    report = zygote.probe("sockets", GUEST)
    refused = ("inet", "netlink", "inet pair", "packet")
    assert {name: report[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert (report["unix"], report["pair"]) == ("ok", "ok")


@pytest.mark.parametrize("jail", [DRIVER, GUEST, NATIVE], ids=["driver", "guest", "native"])
def test_no_file_of_the_host_can_be_read(zygote: Zygote, jail):
    report = zygote.probe("files", jail)["read"]
    if jail is GUEST:
        assert [report.pop("/proc/1/status"), report.pop("/proc/self/status")] == ["ok", "ok"]
    assert set(report.values()) <= {"ENOENT", "EACCES"}, report


@pytest.mark.parametrize("jail", [DRIVER, NATIVE], ids=["driver", "native"])
def test_a_driver_or_program_can_write_nowhere(zygote: Zygote, jail):
    report = zygote.probe("files", jail)["write"]
    assert set(report.values()) <= {"EROFS", "EACCES", "ENOENT"}, report


def test_a_guest_can_write_to_its_own_file_systems_alone(zygote: Zygote):
    report = zygote.probe("files", GUEST)["write"]
    assert {path for path, result in report.items() if result == "ok"} == {"/tmp/x", "/run/x", "/dev/shm/x"}


def test_a_guests_file_systems_have_a_size(zygote: Zygote):
    report = zygote.probe("fill", GUEST)
    assert (report["/tmp"], report["/run"], report["/dev/shm"]) == ("ENOSPC", "ENOSPC", "ok")


def test_a_child_has_its_own_descriptors_and_no_more(zygote: Zygote):
    with open("/dev/null") as one, open("/dev/null") as two:
        report = zygote.probe("open_descriptors", DRIVER, one=one.fileno(), two=two.fileno())
    assert len(report["open"]) == 3 + 2 + 2, "standard three, control and stderr, one and two"


def test_no_process_outside_can_be_signalled(zygote: Zygote):
    sibling = zygote.spawn("who", NATIVE).spawned.pid
    results = zygote.signal_from_inside([sibling, os.getpid(), os.getppid()])
    assert set(results.values()) == {"ESRCH"}


def test_a_guest_sees_its_own_processes_no_network_and_no_mount_of_the_host(zygote: Zygote):
    report = zygote.probe("processes", GUEST)
    assert report["pids"] == [1]
    assert set(report["net"]) <= {"lo"}
    assert not any(path.startswith(("/home", "/etc", "/sys", "/var", "/mnt")) for path in report["mounts"])
    assert report["uid_map"][2] == "1", "one id is mapped"


@pytest.mark.parametrize("jail", [DRIVER, NATIVE], ids=["driver", "native"])
def test_a_driver_or_program_can_do_its_work(zygote: Zygote, jail):
    report = zygote.probe("still_works", jail)
    assert (report["thread"], report["memfd"], report["urandom"]) == ([1], 1, "ok")


def test_two_children_draw_different_random_numbers(zygote: Zygote):
    draws = {zygote.probe("still_works", DRIVER)["random"] for _ in range(3)}
    assert len(draws) == 3


def test_a_guest_can_trace_its_own_children_and_run_a_file_it_was_given(zygote: Zygote):
    assert zygote.probe("trace_own_child", GUEST)["exit"] == 7
    with open("/bin/busybox", "rb") as busybox:
        assert zygote.probe("run_given_file", GUEST, kernel=busybox.fileno())["exit"] == 0


@pytest.mark.parametrize("kind", ["driver", "native"])
def test_limits_hold(zygote: Zygote, kind):
    cpu = min(os.sched_getaffinity(0))
    report = zygote.probe("limits", Jail(kind, nofile=40, memory_bytes=512 * MIB, cpus=(cpu,)))
    assert (report["memory"], report["descriptors"], report["cpus"]) == ("MemoryError", "EMFILE", [cpu])


def test_the_hosts_mount_table_does_not_change(zygote: Zygote):
    before = Path("/proc/self/mountinfo").read_text()
    zygote.probe("files", GUEST)
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("zygote", ["root"], indirect=True)
def test_py_spy_sees_into_a_jail(zygote: Zygote):
    child = zygote.spawn("who", DRIVER)
    child.report()
    py_spy = Path(sys.executable).with_name("py-spy")
    dump = subprocess.run([py_spy, "dump", "--pid", str(child.spawned.pid)], capture_output=True, text=True, check=True)
    assert "get_events" in dump.stdout
