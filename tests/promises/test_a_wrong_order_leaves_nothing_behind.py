"""A guest that cannot be made is refused in one line that says what mends it, and nothing half-made is left."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.status import Status
from kernel.doctor import require
from kernel.images import open_image
from tests.promises.lab import ROOT, start_lab
from tests.promises.processes import descendants_of
from triovisor.client import TvError

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run")) as started:
        yield started


def file_of(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def disk(target: Path, vdev: str = "vda", backend: str = "blkback") -> DiskConfig:
    return DiskConfig(target=str(target), vdev=vdev, backend=backend)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A wrong guest, made in a folder that has `good.img`; the status of its refusal, what its line names, the mend."""

    what: str
    config: Callable[[Path], GuestConfig]
    status: Status
    names: str
    mend: str


def with_disks(*disks: Callable[[Path], DiskConfig]) -> Callable[[Path], GuestConfig]:
    return lambda folder: GuestConfig(name="g", disk=[make(folder) for make in disks])


def text_file(folder: Path, mode: int) -> Path:
    path = folder / "text"
    path.write_text("this is no kernel\n")
    path.chmod(mode)
    return path


def native(text: str | None = None, **settings) -> Callable[[Path], GuestConfig]:
    """A native guest with a program of that text, or with none."""

    def make(folder: Path) -> GuestConfig:
        program = folder / "p.py"
        if text is not None:
            program.write_text(text)
        values = {"name": "g", "type": "native", "program": str(program), "disk": [disk(folder / "good.img")]}
        return GuestConfig(**{**values, **settings})

    return make


WRONGS = (
    Wrong("no program", native(program=None), Status.EINVAL, "program is missing", "give the path of a Python program"),
    Wrong("a missing program", native(), Status.ENOENT, "p.py does not exist", "give the path of a Python program"),
    Wrong("a folder as a program", native("", program="/tmp"), Status.EINVAL, "program /tmp is no file",
          "give the path"),
    Wrong("a program with a syntax error", native("async def main(domain):\n  x = = 1\n"), Status.EIO,
          "p.py:2: invalid syntax", "mend it"),
    Wrong("a program without main", native("def mian(domain): pass\n"), Status.EIO, "there is no main",
          "add async def main(domain)"),
    Wrong("a program whose main is no coroutine", native("def main(domain): pass\n"), Status.EIO,
          "main is no coroutine", "make it async def main(domain)"),
    Wrong("a program that ends as it is loaded", native("import nosuch\n"), Status.EIO,
          "p.py:1: ModuleNotFoundError: No module named 'nosuch'", "before there was a main"),
    Wrong("the same, to be restarted", native("import nosuch\n", on_crash="restart"), Status.EIO, "p.py:1",
          "before there was a main"),
    Wrong("the same, to be preserved", native("import nosuch\n", on_crash="preserve"), Status.EIO, "p.py:1",
          "before there was a main"),
    Wrong("a program that dies as it is loaded", native("import os; os._exit(5)\n"), Status.EIO,
          "did not start: exit status 5", "its log says more, and tv dmesg g"),
    Wrong("a kernel for a native guest", native("", kernel="/usr/bin/linux.uml"), Status.EINVAL,
          "kernel is for a guest of type pv", "leave it out"),
    Wrong("a program for Linux", lambda f: GuestConfig(name="g", program=str(f / "p.py")), Status.EINVAL,
          "program is for a guest of type native", "leave it out"),
    Wrong("a missing image", with_disks(lambda f: disk(f / "none.img")), Status.ENOENT, "none.img", "qemu-img create"),
    Wrong("an image under a sector", with_disks(lambda f: disk(file_of(f / "tiny.img", 511))), Status.EINVAL,
          "tiny.img", "at least one sector of 512"),
    Wrong("a folder as an image", with_disks(disk), Status.EINVAL, "is a folder", "name an image file"),
    Wrong("an unknown backend", with_disks(lambda f: disk(f / "good.img", backend="nfsback")), Status.ENOENT,
          "nfsback", "there are blkback"),
    Wrong("a second disk that is wrong", with_disks(lambda f: disk(f / "good.img"), lambda f: disk(f / "no", "vdb")),
          Status.ENOENT, "no", "qemu-img create"),
    Wrong("two disks with one vdev",
          with_disks(lambda f: disk(f / "good.img"), lambda f: disk(file_of(f / "other.img", MIB))),
          Status.EINVAL, "vdev", "give each its own"),
    Wrong("an unknown kernel", lambda f: GuestConfig(name="g", disk=[disk(f / "good.img")], kernel=str(f / "nokernel")),
          Status.ENOENT, "nokernel", "give the path of a linux.uml"),
    Wrong("a kernel that is not executable",
          lambda f: GuestConfig(name="g", disk=[disk(f / "good.img")], kernel=str(text_file(f, 0o644))),
          Status.EINVAL, "is not executable", "name a linux.uml"),
    Wrong("a text file as a kernel",
          lambda f: GuestConfig(name="g", disk=[disk(f / "good.img")], kernel=str(text_file(f, 0o755))),
          Status.EINVAL, "is no program", "name a linux.uml"),
    Wrong("a missing ramdisk",
          lambda f: GuestConfig(name="g", disk=[disk(f / "good.img")], ramdisk=str(f / "noramdisk")),
          Status.ENOENT, "noramdisk", "give the path of an initramfs"),
    Wrong("CPUs that are not there", lambda f: GuestConfig(name="g", disk=[disk(f / "good.img")], cpus="4000"),
          Status.EINVAL, "cpus = '4000'", "this host has"),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    file_of(tmp_path / "good.img", MIB)
    return tmp_path


def one_line(error: TvError) -> str:
    assert "\n" not in error.why
    assert "Traceback" not in error.why
    return error.why


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.what)
def test_a_wrong_guest_is_refused_with_the_mend_and_leaves_nothing(lab, folder, wrong):
    domains = [domain.name for domain in lab.client.list()]
    config = wrong.config(folder)
    with pytest.raises(TvError) as refusal:
        lab.client.create(config)
    line = one_line(refusal.value)
    assert refusal.value.status is wrong.status
    assert wrong.names in line
    assert wrong.mend in line
    assert_nothing_left(lab, folder, domains)


def assert_nothing_left(lab, folder: Path, domains: list[str]) -> None:
    """No domain, no process of a guest, no lock on the image; and the name can be had at once."""
    assert [domain.name for domain in lab.client.list()] == domains
    assert not any(process.program.startswith("linux.uml") for process in descendants_of(lab.pid))
    open_image(folder / "good.img", read_only=False).close()
    lab.create("g", folder / "good.img")
    lab.destroy_all()


def test_an_image_that_another_guest_holds_is_refused_by_name(lab, folder):
    lab.create("holder", folder / "good.img")
    with pytest.raises(TvError, match="is in use by another") as refusal:
        lab.client.create(GuestConfig(name="g", disk=[disk(folder / "good.img")]))
    assert refusal.value.status is Status.EBUSY
    assert "good.img" in one_line(refusal.value)
    assert lab.run_in("holder", "dd", "if=/dev/zero", "of=/dev/vda", "bs=4k", "count=1", "oflag=direct") == b""
    lab.destroy_all()
    lab.create("g", folder / "good.img")
    lab.destroy_all()


def test_an_image_that_qemu_holds_is_refused_by_name_until_it_is_free(lab, folder):
    require("qemu-img")
    image = folder / "good.img"
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("length\n")
        other.stdin.flush()
        assert "1 MiB" in other.stdout.readline(), "qemu-io has opened the image"
        with pytest.raises(TvError, match="is in use by another"):
            lab.client.create(GuestConfig(name="g", disk=[disk(image)]))
        other.stdin.close()
        other.wait(10)
    assert_nothing_left(lab, folder, [domain.name for domain in lab.client.list()])


def test_qemu_is_refused_an_image_that_a_guest_holds(lab, folder):
    require("qemu-img")
    lab.create("g", folder / "good.img")
    done = subprocess.run(["qemu-io", "-f", "raw", folder / "good.img"], input="", capture_output=True, text=True)
    assert done.returncode != 0
    assert "lock" in done.stderr
    lab.destroy_all()


def test_a_name_that_is_taken_is_refused_and_its_owner_lives_on(lab, folder):
    lab.create("g")
    for config in (GuestConfig(name="g", disk=[disk(folder / "good.img")]), GuestConfig(name="blkback")):
        with pytest.raises(TvError, match=f"{config.name}") as refusal:
            lab.client.create(config)
        assert refusal.value.status is Status.EEXIST
        one_line(refusal.value)
    open_image(folder / "good.img", read_only=False).close()
    assert lab.run_in("g", "echo", "alive") == b"alive\n"
    lab.destroy_all()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('name = "g"\nmemory = 8\n', "memory = 8: a guest needs at least"),
        ('name = "g"\nmemroy = 64\n', "unknown key 'memroy': did you mean 'memory'?"),
        ('name = "g"\ndisk = ["none.img,raw,vda"]\n', "no such file: make one with: qemu-img create"),
        ('name = "g"\nkernel = "none"\n', 'kernel = "none": no such file'),
        ('name = "g\n', "this is not TOML"),
        ("memory = 64\n", "name is missing: add a line such as"),
        ('name = "g"\ntype = "native"\n', "program is missing: give the path of a Python program"),
        ('name = "g"\ntype = "native"\nprogram = "none.py"\n', 'program = "none.py": no such file: give the path of'),
        ('name = "g"\nargs = ["x"]\n', 'args is for a guest with type = "native", this one has type = "pv": leave it'),
    ],
    ids=["memory", "unknown key", "image", "kernel", "no TOML", "no name", "no program", "program", "another type's"],
)
def test_a_mistake_in_a_guests_file_is_one_line_that_names_the_file(lab, tmp_path, text, line):
    file = tmp_path / "guest.toml"
    file.write_text(text)
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), "create", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"tv: {file}: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert [domain.name for domain in lab.client.list()] == ["dom0", "blkback"]
