"""What the host's /proc says of the domains that run: no privilege, no sight of the host, no descriptor too many."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernel.doctor import examine
from kernel.doctor.finding import Jail, jail_of
from tests.not_possible import not_possible
from tests.promises.lab import Lab, start_lab
from tests.promises.native import native
from tests.promises.processes import descendants_of, links_of, status_of

NAMESPACES = ("pid", "mnt", "net", "ipc", "user")
SECCOMP_FILTER = "2"
NO_CAPABILITIES = "0" * 16
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
COVERED_PROC = "/.host/proc"
"""Beneath a tmpfs that nobody may enter: a user namespace may mount a /proc of its own only where one is mounted."""


@pytest.fixture(scope="module", autouse=True)
def _host_has_every_wall() -> None:
    if jail_of(examine()) is Jail.REDUCED:
        not_possible("the full jail needs namespaces, seccomp and Landlock")


@dataclass(frozen=True, slots=True)
class Jailed:
    """A domain that runs, by its first process."""

    kind: str
    pid: int


@pytest.fixture(scope="module")
def image(images) -> Path:
    path: Path = images("jailed", 8)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory, image, images) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("run"), standby=True) as started:
        program = "import trio\nasync def main(domain): await trio.sleep_forever()\n"
        started.client.create(native(tmp_path_factory.mktemp("program"), "n", program, images("native", 1)))
        started.create("g", image)
        started.run_in("g", "true")
        started.watch.wait_serving()
        yield started


@pytest.fixture(scope="module")
def domains(lab) -> dict[str, Jailed]:
    """One of each kind: dom0, driver, standby, guest, native."""
    driver = lab.driver()
    pids = {"dom0": lab.client.info("dom0").pid, "driver": driver.pid, "standby": driver.standby_pid}
    pids |= {"guest": lab.client.info("g").pid, "native": lab.client.info("n").pid}
    return {kind: Jailed(kind, pid) for kind, pid in pids.items()}


@pytest.fixture(params=["dom0", "driver", "standby", "guest", "native"])
def domain(request, domains) -> Jailed:
    jailed: Jailed = domains[request.param]
    return jailed


def processes_of(domain: Jailed) -> list[int]:
    """All processes of a domain: a guest's operating system is many."""
    return [domain.pid, *(process.pid for process in descendants_of(domain.pid))]


def writable_mounts_of(pid: int) -> set[tuple[str, str]]:
    """Where, of what type (proc_pid_mountinfo(5)): those where neither the mount nor what is mounted is read-only."""
    rows = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    writable = [row for row in rows if "rw" in row[5].split(",") and "rw" in row[-1].split(",")]
    return {(row[4], row[row.index("-") + 1]) for row in writable if row[4] not in (*DEVICES, COVERED_PROC)}


def identity_of(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def holds(pid: int, path: Path) -> bool:
    """Whether it has a descriptor of that file."""
    wanted = identity_of(path)
    return any(identity_of(f"/proc/{pid}/fd/{number}") == wanted for number in links_of(pid, "fd"))


def test_no_process_of_a_domain_has_any_privilege(domain):
    pids = processes_of(domain)
    assert len(pids) > 3 if domain.kind == "guest" else len(pids) == 1
    for pid in pids:
        status = status_of(pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        assert status["Seccomp"] == SECCOMP_FILTER
        assert status["NoNewPrivs"] == "1"
        for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert status[capabilities] == NO_CAPABILITIES


def test_each_domain_has_every_namespace_for_itself(domain, domains):
    own = links_of(domain.pid, "ns")
    others = [links_of(pid, "ns") for pid in (os.getpid(), *(o.pid for o in domains.values() if o != domain))]
    for namespace in NAMESPACES:
        assert own[namespace] not in [other[namespace] for other in others], namespace


def test_each_domain_has_a_user_of_its_own(domains):
    if os.geteuid() != 0:
        not_possible("a uid for each domain needs root")
    uids = [status_of(domain.pid)["Uid"].split()[0] for domain in domains.values() if domain.kind != "standby"]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("kind", ["driver", "standby", "dom0", "native"])
def test_all_but_linux_can_write_no_file_system_and_have_no_proc(domains, kind):
    assert writable_mounts_of(domains[kind].pid) == set()
    assert list(Path(f"/proc/{domains[kind].pid}/root/proc").iterdir()) == []


def test_a_guest_can_write_only_memory_of_its_own(domains):
    own = {(folder, "tmpfs") for folder in ("/dev/shm", "/tmp", "/run")}
    assert writable_mounts_of(domains["guest"].pid) == own | {("/proc", "proc")}


def test_the_hosts_proc_that_a_user_namespace_needs_mounted_is_covered_for_good(domain):
    with pytest.raises((FileNotFoundError, PermissionError)):  # root may enter the cover, and finds it empty
        os.stat(f"/proc/{domain.pid}/root{COVERED_PROC}")
    cover = Path(f"/proc/{domain.pid}/root{COVERED_PROC}").parent
    assert stat.S_IMODE(cover.stat().st_mode) == 0


def test_nothing_of_the_hosts_homes_runs_and_images_can_be_seen(domain, lab, image):
    root = Path(f"/proc/{domain.pid}/root")
    for path in ("/home", "/root/.ssh", "/etc/passwd", "/var", str(lab.run), str(image)):
        assert not (root / path.lstrip("/")).exists(), path


def test_a_driver_holds_no_memory_of_its_guest(domains):
    """It maps the rings that it was granted, and nothing else that is shared, but for the system's own files."""
    guests = {
        identity_of(f"/proc/{pid}/fd/{number}")
        for pid in processes_of(domains["guest"])
        for number, path in links_of(pid, "fd").items()
        if path.startswith("/dev/shm/")
    }
    assert guests, "the guest's memory is a file in its /dev/shm"
    for kind in ("driver", "standby"):
        pid = domains[kind].pid
        assert not guests & {identity_of(f"/proc/{pid}/fd/{number}") for number in links_of(pid, "fd")}
        shared = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.split()[1][3] == "s"]
        assert shared
        for line in shared:
            _, rights, _, _, _, path = line.split(maxsplit=5)
            assert path.startswith("/memfd:blkif-") or (rights == "r--s" and path.startswith("/usr/")), line


def test_what_a_guest_granted_for_reading_is_mapped_for_reading(domains):
    for kind in ("driver", "standby"):
        lines = Path(f"/proc/{domains[kind].pid}/maps").read_text().splitlines()
        assert {line.split()[1] for line in lines if "/memfd:blkif-out" in line} == {"r--s"}
        assert {line.split()[1] for line in lines if "/memfd:blkif-in" in line} == {"rw-s"}


def test_only_the_serving_incarnation_holds_the_image(domains, image):
    assert holds(domains["driver"].pid, image)
    for kind in ("standby", "dom0", "guest", "native"):
        for pid in processes_of(domains[kind]):
            assert not holds(pid, image)


def test_a_domain_holds_no_socket_file_or_pipe_of_another(domain, domains):
    """Every descriptor is a pipe, socket, memfd or event counter of its own, or a file that it was handed."""
    own = {link for pid in processes_of(domain) for link in links_of(pid, "fd").values() if link.startswith("socket:")}
    assert own, "its control channel"
    for other in domains.values():
        if other != domain:
            theirs = {link for pid in processes_of(other) for link in links_of(pid, "fd").values()}
            assert not own & theirs


def test_every_domain_is_told_to_be_in_the_full_jail(lab):
    assert {domain.jail for domain in lab.client.list()} == {"full"}
