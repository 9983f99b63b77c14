"""Set-up as a whole."""

import os
import subprocess
import sys
from pathlib import Path

from kernel.abi.cache import unpacked_packages
from triovisor.provision import guest_files
from triovisor.provision.files import is_static
from triovisor.provision.packages import BASE, Package, missing_packages

COMMAND = [sys.executable, "-m", "triovisor.provision"]


def start(cache: Path, *words: str) -> subprocess.Popen[str]:
    """With what was unpacked for this user, if anything was."""
    packages = cache / "packages"
    if not packages.is_symlink():
        packages.symlink_to(unpacked_packages().parent)
    environment = os.environ | {"TRIOVISOR_CACHE": str(cache)}
    return subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0
    return said


def state(cache: Path) -> dict[str, int]:
    """Its files: one that is written anew is another."""
    return {path.name: path.lstat().st_ino for path in (cache / "guest").iterdir()}


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


def test_a_program_that_does_not_suit_does_not_hide_one_that_does(tmp_path):
    """Debian's busybox for its own initramfs needs a loader; set-up's does not."""
    dynamic = tmp_path / "busybox"
    dynamic.write_bytes(Path("/bin/sh").read_bytes())
    dynamic.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert not is_static(dynamic)
    ask = "from triovisor.provision.packages import BASE; print(*(p.found() for p in BASE if p.shown_by == 'busybox'))"
    found = subprocess.check_output([sys.executable, "-c", ask], env=environment, text=True).strip()
    assert found != str(dynamic)
    assert is_static(Path(found))


def test_without_apt_what_to_bring_by_hand_is_said(tmp_path):
    hide = 'for f in apt-get linux.uml; do mount --bind /dev/null /usr/bin/$f; done; exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hide, "sh"]
    environment = os.environ | {"TRIOVISOR_CACHE": str(tmp_path), "PATH": os.defpath}
    done = subprocess.run([*prefix, *COMMAND], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told = "no apt-get here; bring by your own package manager: linux.uml (the guest kernel)"
    assert done.stderr.startswith(f"provision: {told}")
    assert done.stderr.count("\n") == 1


def test_what_was_compiled_for_sources_that_nobody_has_any_more_is_removed(tmp_path):
    finish(start(tmp_path))
    guest = tmp_path / "guest"
    names = ("programs-0123456789abcdef", "initramfs-0123456789abcdef.cpio")
    for name in names:
        (guest / name).touch()
    finish(start(tmp_path))
    assert all((guest / name).exists() for name in names), "another checkout may use them"
    for name in names:
        os.utime(guest / name, (0, 0))
    finish(start(tmp_path))
    assert not any((guest / name).exists() for name in names)
