"""Set-up as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triovisor.provision import SetupError, guest_files
from triovisor.provision.packages import BASE, Package, install_packages, missing_packages

COMMAND = [sys.executable, "-m", "triovisor.provision"]


def start(cache: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TRIOVISOR_CACHE": str(cache)}
    return subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0
    return said


def state(cache: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mtime_ns for path in (cache / "guest").iterdir()}


def test_two_set_ups_at_once_both_succeed_and_a_third_does_nothing(tmp_path):
    first, second = start(tmp_path), start(tmp_path)
    finish(first)
    finish(second)
    before = state(tmp_path)
    assert {"initramfs.cpio", "lpj"} < before.keys()
    assert len(before) == 4, "a temporary file is left"
    third = finish(start(tmp_path))
    assert third.count("already") == 3
    assert state(tmp_path) == before


def test_a_look_alone_makes_nothing(tmp_path):
    assert "packages" in finish(start(tmp_path, "--check"))
    assert not (tmp_path / "guest").exists()


def test_what_set_up_left_is_found():
    files = guest_files()
    assert files.kernel.name == "linux.uml"
    assert files.initrd.read_bytes().startswith(b"070701")
    assert files.lpj is not None
    assert files.lpj > 0


def test_a_package_is_there_when_its_file_is():
    none = Package("none", "/no/such/file", "nothing")
    assert missing_packages([*BASE, none]) == [none]


def test_without_root_the_command_that_mends_it_is_said():
    with pytest.raises(SetupError, match="only root can install packages; run: sudo apt-get install p"):
        install_packages([Package("p", "/no/such/file", "nothing")], is_root=False)
