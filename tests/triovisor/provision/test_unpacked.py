"""System packages for an ordinary user, brought by a real apt-get from a repository of the test's own."""

import ensurepip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.triovisor.provision.repository import serve_repository
from triovisor.provision.files import MAX_IDLE_S

UNPACK = """
import sys
from triovisor.provision.files import exit_status
from triovisor.provision.packages import Package, unpack_missing
wanted = [Package(name, f"{name}-run", "a test") for name in sys.argv[1:]]
sys.exit(exit_status("provision", lambda: unpack_missing(wanted)))
"""
ROOT = Path(__file__).parents[3]
TOOL = '#!/bin/sh\necho "$LD_LIBRARY_PATH $1"\n'
PATIENCE_S = 30.0


@pytest.fixture
def served(tmp_path):
    with serve_repository(tmp_path) as served:
        repository, _ = served
        repository.add("tv-lib", {"usr/lib/x86_64-linux-gnu/libtv.so": "a library"})
        repository.add("tv-tool", {"usr/sbin/tv-tool-run": TOOL}, depends="tv-lib")
        repository.add("tv-more", {"usr/bin/tv-more-run": TOOL})
        yield served


def start(environment: dict[str, str], *packages: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", UNPACK, *packages]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, said
    return said


def current(environment: dict[str, str]) -> Path:
    return Path(environment["TRIOVISOR_CACHE"]) / "packages" / "current"


def archives(environment: dict[str, str]) -> list[str]:
    folder = Path(environment["TRIOVISOR_CACHE"]) / "packages" / "archives"
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


def test_a_program_comes_with_what_it_needs_and_finds_it(served):
    repository, environment = served
    said = finish(start(environment, "tv-tool"))
    assert "downloading 2 archives" in said
    assert "unpacking 2 of 2" in said
    told = subprocess.check_output([current(environment) / "bin/tv-tool-run", "word"], text=True)
    libraries, word = told.split()
    assert word == "word"
    assert any((Path(folder) / "libtv.so").exists() for folder in libraries.split(":"))
    assert len(repository.asked) == 2


def test_what_is_there_is_not_asked_for_again_and_more_is_added_to_it(served):
    repository, environment = served
    finish(start(environment, "tv-tool"))
    asked = list(repository.asked)
    assert finish(start(environment, "tv-tool")) == ""
    assert repository.asked == asked
    finish(start(environment, "tv-tool", "tv-more"))
    assert repository.asked == [*asked, "tv-more_1.0_all.deb"]
    assert {path.name for path in (current(environment) / "bin").iterdir()} == {"tv-tool-run", "tv-more-run"}


def test_a_set_up_killed_over_a_download_is_gone_on_with(served):
    repository, environment = served
    repository.stalling = "tv-tool"
    first = start(environment, "tv-tool")
    assert repository.stalls.wait(PATIENCE_S)
    first.send_signal(signal.SIGKILL)
    repository.go_on.set()
    finish(first, -signal.SIGKILL)
    assert not current(environment).exists()
    finish(start(environment, "tv-tool"))
    assert (current(environment) / "bin/tv-tool-run").exists()
    assert repository.asked.count("tv-lib_1.0_all.deb") == 1


def test_an_archive_whose_download_is_interrupted_is_not_begun_anew(served):
    """Ctrl-C, which a terminal sends to apt too."""
    repository, environment = served
    repository.add("tv-big", {"usr/bin/tv-big-run": TOOL, "usr/share/tv-big": os.urandom(1 << 20)})
    repository.halving = "tv-big"
    first = start(environment, "tv-big")
    assert repository.stalls.wait(PATIENCE_S)
    wait_for_half(environment, repository.folder / "tv-big_1.0_all.deb")
    os.killpg(first.pid, signal.SIGINT)
    assert finish(first, 130).splitlines()[-1] == "provision: interrupted; the next one goes on where this was"
    repository.halving = ""
    repository.go_on.set()
    finish(start(environment, "tv-big"))
    assert (current(environment) / "root/usr/share/tv-big").stat().st_size == 1 << 20
    (_, at_first), (_, then) = repository.parts
    assert at_first == 0
    assert then >= 1 << 19


def wait_for_half(environment: dict[str, str], whole: Path) -> None:
    folder = Path(environment["TRIOVISOR_CACHE"]) / "packages" / "archives"
    deadline = time.monotonic() + PATIENCE_S
    while sum(path.stat().st_size for path in folder.iterdir()) < whole.stat().st_size // 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_set_ups_at_once_download_everything_once(served):
    repository, environment = served
    repository.stalling = "tv-tool"
    first = start(environment, "tv-tool")
    assert repository.stalls.wait(PATIENCE_S)
    second = start(environment, "tv-tool")
    assert second.stdout is not None
    assert "waiting for another set-up" in second.stdout.readline()
    repository.go_on.set()
    finish(first)
    finish(second)
    assert sorted(repository.asked) == ["tv-lib_1.0_all.deb", "tv-tool_1.0_all.deb"]


def test_what_a_killed_set_up_left_half_unpacked_or_half_written_is_done_anew(served):
    repository, environment = served
    finish(start(environment, "tv-tool"))
    packages = current(environment).parent
    made = packages / os.readlink(packages / "current")
    made.rename(packages / "unfinished")
    (packages / "unfinished/root/usr/sbin/tv-tool-run").unlink()
    (packages / "current").unlink()
    for archive in (packages / "archives").glob("tv-lib-*"):
        archive.write_bytes(archive.read_bytes()[:100])
    finish(start(environment, "tv-tool"))
    assert (current(environment) / "root/usr/sbin/tv-tool-run").exists()
    assert not (packages / "unfinished").exists()
    assert repository.asked.count("tv-tool_1.0_all.deb") == 1
    assert repository.asked.count("tv-lib_1.0_all.deb") == 2


def test_an_archive_that_is_not_what_the_index_says_is_refused(served):
    repository, environment = served
    repository.add("tv-bad", {"usr/bin/tv-bad-run": TOOL}, honest=False)
    said = finish(start(environment, "tv-bad"), 1).splitlines()[-1]
    assert said.startswith("provision: tv-bad-")
    assert said.endswith("or have root run: apt-get install tv-bad")
    assert not current(environment).exists()


def test_an_index_of_the_systems_that_is_stale_is_not_relied_on(served):
    repository, environment = served
    subprocess.run(["apt-get", "update"], env=environment, check=True, capture_output=True)
    repository.remove("tv-tool")
    repository.add("tv-tool", {"usr/sbin/tv-tool-run": TOOL, "usr/share/tv-tool": "new"}, version="2.0")
    assert "fetching the package index" in finish(start(environment, "tv-tool"))
    assert (current(environment) / "root/usr/share/tv-tool").read_text() == "new"


def test_a_package_that_nobody_has_is_named(served):
    _, environment = served
    said = finish(start(environment, "tv-none"), 1).splitlines()[-1]
    assert said == "provision: apt-get: Unable to locate package tv-none; or have root run: apt-get install tv-none"


def test_what_no_set_up_has_wanted_for_long_goes_and_what_may_be_in_use_stays(served):
    _, environment = served
    finish(start(environment, "tv-tool"))
    packages = current(environment).parent
    old, recent = packages / ("0" * 16), packages / ("1" * 16)
    for folder in (old, recent):
        (folder / "root").mkdir(parents=True)
    (packages / "archives/tv-old-1234.deb").touch()
    long_ago = time.time() - 2 * MAX_IDLE_S
    os.utime(old, (long_ago, long_ago))
    before = os.readlink(packages / "current")
    finish(start(environment, "tv-tool", "tv-more"))
    assert not old.exists()
    assert recent.exists()
    assert (packages / before).exists()
    assert archives(environment) == ["tv-lib", "tv-more", "tv-tool"]


def test_a_python_without_ensurepip_gets_pip_into_its_virtual_environment(served, tmp_path):
    repository, environment = served
    folders = (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))
    wheel = next(wheel for folder in folders for wheel in folder.glob("pip-*.whl"))
    repository.add("python3-pip-whl", {f"usr/share/python-wheels/{wheel.name}": wheel.read_bytes()})
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    command = [tmp_path / "venv/bin/python", "-m", "triovisor.provision.pip"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    told = subprocess.check_output([tmp_path / "venv/bin/pip", "--version"], text=True)
    assert f"{tmp_path}/venv" in told


def test_a_cache_whose_path_a_compiler_could_not_be_told_is_refused(served, tmp_path):
    _, environment = served
    said = finish(start(environment | {"TRIOVISOR_CACHE": f"{tmp_path}/a b"}, "tv-tool"), 1)
    assert "give TRIOVISOR_CACHE one without blanks" in said
