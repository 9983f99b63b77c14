"""A guest's TOML: what is right is read, and each mistake is one line with its mend."""

import re

import pytest

from kernel.abi.guest_config import Action, DiskConfig, GuestConfig
from triovisor.config import ConfigError, load

NAME = 'name = "web"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.img").write_bytes(b"\0" * 4096)
    (tmp_path / "b.img").write_bytes(b"\0" * 512)
    (tmp_path / "tiny.img").write_bytes(b"\0" * 511)
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + b"\0" * 1020)
    (tmp_path / "vmlinux").write_bytes(b"ELF")
    return tmp_path


def write(folder, text: str):
    path = folder / "guest.toml"
    path.write_text(text)
    return path


def mistake(folder, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_name_is_enough(folder):
    assert load(write(folder, NAME)) == GuestConfig(name="web")


def test_every_key_is_read_and_paths_are_made_absolute(folder):
    text = (
        NAME
        + """
memory = 128
type = "pv"
vcpus = 1
cpus = "0-1"
kernel = "vmlinux"
root = "/dev/vda"
extra = "quiet"
on_poweroff = "preserve"
on_reboot = "destroy"
on_crash = "restart"
[[disk]]
target = "a.img"
vdev = "vda"
[[disk]]
target = "./b.img"
vdev = "vdb"
access = "ro"
backend = "blkback2"
"""
    )
    assert load(write(folder, text)) == GuestConfig(
        name="web",
        memory=128,
        cpus="0-1",
        kernel=str(folder / "vmlinux"),
        root="/dev/vda",
        extra="quiet",
        disk=[DiskConfig(str(folder / "a.img"), "vda"), DiskConfig(str(folder / "b.img"), "vdb", "ro", "blkback2")],
        on_poweroff=Action.PRESERVE,
        on_reboot=Action.DESTROY,
        on_crash=Action.RESTART,
    )


def test_a_native_guest_has_a_program_arguments_and_peers(folder):
    text = NAME + 'type = "native"\nprogram = "a.img"\nargs = ["1", "ü"]\npeers = ["other"]'
    assert load(write(folder, text)) == GuestConfig(
        name="web", type="native", program=str(folder / "a.img"), args=["1", "ü"], peers=["other"]
    )


@pytest.mark.parametrize(
    ("text", "access"),
    [
        ("target=a.img,vdev=vda,access=rw", "rw"),
        ("vdev=vda, target=a.img, access=r", "ro"),
        ("a.img,raw,vda,rw", "rw"),
        ("a.img,raw,vda,w", "rw"),
        ("a.img,,vda,ro", "ro"),
        ("a.img,raw,vda", "rw"),
        ("a.img,format=raw,vdev=vda", "rw"),
        ("a.img,raw,access=r,vdev=vda", "ro"),
    ],
)
def test_a_disk_may_be_a_string_as_xl_has_it(folder, text, access):
    (disk,) = load(write(folder, NAME + f'disk = ["{text}"]')).disk
    assert disk == DiskConfig(str(folder / "a.img"), "vda", access)


def test_a_path_is_taken_from_the_folder_of_its_toml(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    path = write(folder, NAME + 'disk = ["a.img,raw,vda"]')
    monkeypatch.chdir(folder / "elsewhere")
    assert load(f"../{path.name}").disk[0].target == str(folder / "a.img")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("memory = 64", "name is missing"),
        (NAME + "memory = 8", "memory = 8: a guest needs at least 24 (MiB)"),
        (NAME + 'memory = "64"', 'memory = "64": give a whole number of MiB, 24 to 65536'),
        (NAME + "memory = true", "memory = true: give a whole number"),
        (NAME + "memory = 99999", "memory = 99999: give a whole number of MiB, 24 to 65536"),
        (NAME + "memroy = 64", "unknown key 'memroy': did you mean 'memory'?"),
        (NAME + "zzz = 1", "unknown key 'zzz': the keys are name, memory"),
        ('name = "-web"', 'name = "-web": give letters'),
        ("name = 7", "name = 7: give letters"),
        (NAME + "vcpus = 2", "vcpus = 2: give 1"),
        (NAME + 'type = "hvm"', 'type = "hvm": give "pv", Linux, or "native", a Python program'),
        (NAME + 'cpus = "all"', 'cpus = "all": give CPUs as a string'),
        (NAME + 'type = "native"', "program is missing: give the path of a Python program with async def main(domain)"),
        (NAME + 'type = "native"\nprogram = "no.py"', 'program = "no.py": no such file: give the path of a Python'),
        (NAME + 'type = "native"\nprogram = 7', "program = 7: give the path of a Python program"),
        (NAME + 'type = "native"\nprogram = "a.img"\nargs = [1]', "args = [1]: give the program's arguments"),
        (NAME + 'type = "native"\nprogram = "a.img"\npeers = ["-"]', 'peers = ["-"]: give names of guests'),
        (NAME + f'type = "native"\nprogram = "a.img"\nargs = {["x"] * 65}', "at most 64 strings of at most 1024"),
        (NAME + f'type = "native"\nprogram = "a.img"\nargs = {["x" * 1025]}', "at most 64 strings of at most 1024"),
        (NAME + 'type = "native"\nprogram = "a.img"\nargs = ["\\u0000"]', "give the program's arguments"),
        (NAME + 'type = "native"\nprogram = "a.img"\nargs = "x"', 'args = "x": give the program\'s arguments'),
        (NAME + f'type = "native"\nprogram = "a.img"\npeers = {["p"] * 65}', "give names of guests"),
        (NAME + 'type = "native"\nprogram = "."', 'program = ".": no such file: give the path of a Python program'),
        (NAME + 'type = "native"\nprogram = "a.img"\nmemory = 8', "memory = 8: a guest needs at least 24 (MiB)"),
        (NAME + 'type = "native"\nprogram = "a.img"\nroot = "/dev/vda"', 'root is for a guest with type = "pv"'),
        (NAME + 'type = "native"\nprogam = "a.img"', "unknown key 'progam': did you mean 'program'?"),
        (
            NAME + 'type = "native"\nprogram = "a.img"\nextra = ""',
            'extra is for a guest with type = "pv", this one has type = "native": leave it out',
        ),
        (NAME + 'program = "a.img"', 'program is for a guest with type = "native", this one has type = "pv"'),
        (NAME + 'on_crash = "explode"', 'on_crash = "explode": give "destroy" or "restart" or "preserve" or '),
        (NAME + 'kernel = "missing"', 'kernel = "missing": no such file'),
        (NAME + 'root = "/dev/vda"', 'root = "/dev/vda": no disk has that vdev: add a [[disk]]'),
        (
            NAME + 'root = "/dev/vdb"\ndisk = ["a.img,raw,vda"]',
            'root = "/dev/vdb": no disk has that vdev: there is /dev/vda',
        ),
        (NAME + "extra = [1]", "extra = [1]: give words"),
        (NAME + 'disk = "a.img"', 'disk = "a.img": give an array'),
        (NAME + "disk = [1]", "disk 1: 1: give a table or a string"),
        (NAME + 'disk = ["a.img"]', 'disk 1: vdev is missing: add vdev, "vda" to "vdp"'),
        (NAME + 'disk = ["vdev=vda"]', "disk 1: target is missing"),
        (NAME + 'disk = ["a.img,raw,vda,rw,more"]', "too many words"),
        (NAME + 'disk = ["a.img,vmdk,vda"]', 'disk 1: format = "vmdk": give "raw" or "qcow2"'),
        (NAME + 'disk = ["a.img,qcow2,vda"]', "no qcow2 image: leave out format, or make one with: tv image create"),
        (NAME + 'disk = ["no.img,qcow2,vda"]', "no such file: make one with: tv image create"),
        (NAME + 'disk = ["a.img,raw,vda,backing=b.img"]', 'backing = "b.img": only for format = "qcow2"'),
        (NAME + 'disk = ["disk.qcow2,qcow2,vda,backing=no.img"]', 'backing = "no.img": no such file'),
        (NAME + 'disk = ["disk.qcow2,qcow2,vda,backing=disk.qcow2"]', "a raw one is what another may stand on"),
        (NAME + 'disk = ["a.img,raw,xvda"]', 'disk 1: vdev = "xvda": give "vda" to "vdp"'),
        (NAME + 'disk = ["a.img,raw,vda,maybe"]', 'disk 1: access = "maybe": give "rw" or "ro"'),
        (NAME + 'disk = ["a.img,raw,vda,vdev=vdb"]', "vdev is given twice"),
        (NAME + 'disk = ["target=a.img,vdve=vda"]', "unknown key 'vdve': did you mean 'vdev'?"),
        (NAME + 'disk = ["a.img,raw,vda", "b.img,raw,vda"]', 'disk 2: vdev = "vda": another disk has it'),
        (NAME + 'disk = ["no.img,raw,vda"]', "qemu-img create -f raw"),
        (NAME + 'disk = [".,raw,vda"]', "neither a file nor a block device"),
        (NAME + 'disk = ["tiny.img,raw,vda"]', "511 bytes: an image has at least one sector of 512"),
        (NAME + 'disk = ["disk.qcow2,raw,vda"]', 'disk 1: target = "disk.qcow2": a qcow2 image: add format = "qcow2"'),
        (NAME + '[[disk]]\ntarget = 7\nvdev = "vda"', "disk 1: target = 7: give the path of an image"),
        (
            NAME + '[[disk]]\ntarget = "a.img"\nvdev = "vda"\naccess = ["rw"]',
            'disk 1: access = ["rw"]: give "rw" or "ro"',
        ),
        (NAME + '[disk]\ntarget = "a.img"', "give an array, [[disk]] tables or strings"),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(folder, text, line):
    assert line in mistake(folder, text)


def test_a_qcow2_image_is_served_by_its_own_driver_unless_another_is_named(folder):
    disk = DiskConfig(
        target=str(folder / "disk.qcow2"),
        vdev="vda",
        backend="qcowback",
        format="qcow2",
        backing=str(folder / "a.img"),
    )
    text = NAME + '[[disk]]\ntarget = "disk.qcow2"\nvdev = "vda"\nformat = "qcow2"\nbacking = "a.img"\n'
    assert load(write(folder, text)).disk == [disk]
    text = NAME + 'disk = ["disk.qcow2,qcow2,vda,backing=a.img,backend=mine"]'
    assert load(write(folder, text)).disk[0].backend == "mine"


def test_more_disks_than_a_guest_can_have_are_refused(folder):
    assert "17 of them: a guest has at most 16" in mistake(folder, NAME + f"disk = {['a.img,raw,vda'] * 17}")


def test_a_file_that_is_no_toml_is_reported_with_its_line(folder):
    assert "line 2" in mistake(folder, NAME + "memory 64\n")


def test_a_file_that_is_not_text_is_reported(folder):
    path = folder / "guest.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(path)


def test_a_file_that_is_missing_is_reported_by_the_name_given(folder):
    with pytest.raises(ConfigError, match=r"^nowhere\.toml: No such file"):
        load("nowhere.toml")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["memory=128"], "memory", 128),
        (["memory=32", "memory=48"], "memory", 48),
        (["name=7"], "name", "7"),
        (["extra=quiet tv.x=1"], "extra", "quiet tv.x=1"),
        (["extra="], "extra", ""),
        (['extra="7"'], "extra", "7"),
        (["on_crash=coredump-restart"], "on_crash", Action.COREDUMP_RESTART),
        (["disk=[]"], "disk", []),
        (["cpus=0"], "cpus", "0"),
    ],
    ids=lambda value: str(value),
)
def test_a_word_behind_the_file_counts_instead_of_what_it_says(tmp_path, words, key, value):
    (tmp_path / "a.img").write_bytes(bytes(512))
    file = tmp_path / "web.toml"
    file.write_text('name = "web"\nmemory = 64\ndisk = ["a.img,raw,vda"]\n')
    assert getattr(load(file, words), key) == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("memory", "'memory' is no KEY=VALUE: write it as memory=128"),
        ("=1", "'=1' is no KEY=VALUE"),
        ("memry=1", "unknown key 'memry': did you mean 'memory'?"),
        ("memory=lots", 'memory = "lots": give a whole number'),
        ("memory=8", "memory = 8: a guest needs at least 24 (MiB)"),
        ("kernel=no-such-file", "no such file"),
    ],
)
def test_a_word_that_says_nothing_is_one_line(tmp_path, word, said):
    file = tmp_path / "web.toml"
    file.write_text('name = "web"\n')
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load(file, [word])
    assert "\n" not in str(caught.value)
