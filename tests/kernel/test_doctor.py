"""The doctor: its judgement by tables, its looks on this host, and on hosts made poorer for the test."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kernel.abi.status import KernelBug
from kernel.doctor import PartMissing, examine, require
from kernel.doctor.attempt import in_child
from kernel.doctor.finding import JAIL_PARTS, Finding, Jail, State, as_json, carries_all, jail_of, one_line, report
from kernel.doctor.parts import PARTS, Part

RUN_DOCTOR = "import sys, kernel.doctor; sys.exit(kernel.doctor.main(json=True))"


def found(name: str, state: State = State.OK, optional: bool = False) -> Finding:
    return Finding(name, state, "seen", "a cost", "a command", optional)


def doctor_told(*before: str, **environment: str) -> tuple[int, dict]:
    """Exit status and JSON of a doctor in a process of its own, started through `before`."""
    command = [*before, sys.executable, "-c", RUN_DOCTOR]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)
    return done.returncode, msgspec.json.decode(done.stdout)


@pytest.mark.parametrize("lacking", sorted(JAIL_PARTS))
def test_a_host_without_one_part_of_the_jail_gives_the_reduced_jail(lacking):
    findings = [found(name, State.MISSING if name == lacking else State.OK) for name in JAIL_PARTS]
    assert jail_of(findings) is Jail.REDUCED


def test_a_host_with_every_part_of_the_jail_gives_the_full_jail():
    assert jail_of([found(name) for name in JAIL_PARTS]) is Jail.FULL


@pytest.mark.parametrize(
    ("state", "optional", "carried"),
    [
        (State.OK, False, True),
        (State.DEGRADED, False, True),
        (State.MISSING, False, False),
        (State.MISSING, True, True),
    ],
)
def test_only_a_missing_part_that_is_not_optional_breaks_a_promise(state, optional, carried):
    assert carries_all([found("memfd"), found("gcc", state, optional)]) is carried


def test_the_report_tells_cost_and_mend_of_what_is_not_well_and_of_nothing_else():
    well = report([found("memfd")])
    assert "ok        memfd  seen" in well
    assert "a cost" not in well
    ill = report([found("memfd", State.MISSING)])
    assert "costs: a cost" in ill
    assert "mend:  a command" in ill
    assert ill.endswith("it lacks: memfd.")


def test_one_line_says_what_is_missing_what_it_costs_and_what_mends_it():
    line = one_line(found("qemu-img", State.MISSING))
    assert line == "qemu-img missing: seen; costs: a cost; mend: a command"


def test_the_report_for_scripts_holds_every_finding():
    told = msgspec.json.decode(as_json([found("memfd"), found("gcc", State.MISSING)]))
    assert told["ok"] is False
    assert told["jail"] == "reduced"
    assert [(f["name"], f["state"]) for f in told["findings"]] == [("memfd", "ok"), ("gcc", "missing")]


def test_what_the_host_refuses_is_missing():
    def refused():
        raise PermissionError(1, "Operation not permitted", "/dev/kvm")

    answer = Part("kvm", refused, "a cost", "a command").answer()
    assert (answer.state, answer.value) == (State.MISSING, "/dev/kvm: Operation not permitted")


def test_every_part_has_a_name_of_its_own_a_cost_and_a_mend():
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(part.cost and part.mend for part in PARTS)
    assert {part.name for part in PARTS} >= JAIL_PARTS


def test_a_look_leaves_no_descriptor_no_mount_and_no_child_behind():
    def traces() -> tuple[set[str], str, list[str]]:
        children = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        return set(os.listdir("/proc/self/fd")), Path("/proc/self/mounts").read_text(), children

    before = traces()
    assert len(examine()) == len(PARTS)
    assert traces() == before


def test_the_exit_status_agrees_with_the_report():
    status, told = doctor_told()
    assert status == (0 if told["ok"] else 1)


def test_a_host_that_forbids_user_namespaces_gives_the_reduced_jail_and_the_setting_is_named():
    require("namespaces.user")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    status, told = doctor_told("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    assert (status, told["jail"]) == (1, "reduced")
    finding = next(f for f in told["findings"] if f["name"] == "namespaces.user")
    assert finding["mend"] == "sudo sysctl -w user.max_user_namespaces=10000"


def test_a_host_before_set_up_lacks_the_initramfs_and_provisioning_mends_it(tmp_path):
    status, told = doctor_told(TRIOVISOR_CACHE=str(tmp_path))
    assert status == 1
    finding = next(f for f in told["findings"] if f["name"] == "initramfs")
    assert finding["state"] == "missing"
    assert finding["mend"] == "python -m triovisor.provision"


def test_requiring_what_is_there_passes_and_what_is_missing_fails_with_the_line(tmp_path):
    require("python")
    ask = "import kernel.doctor; kernel.doctor.require('initramfs')"
    environment = os.environ | {"TRIOVISOR_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{PartMissing.__module__}.PartMissing: initramfs missing: ")
    assert last.endswith("mend: python -m triovisor.provision")


def test_requiring_a_part_that_nobody_knows_is_our_own_bug():
    with pytest.raises(KernelBug):
        require("flux-capacitor")


def test_an_error_in_a_trial_process_is_raised_here():
    def act() -> str:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(PermissionError):
        in_child(act)


def test_a_trial_process_that_dies_is_an_error():
    with pytest.raises(OSError, match="ended with 3"):
        in_child(lambda: os._exit(3))
