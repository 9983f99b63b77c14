"""A copy-on-write overlay in qcow2 as a disk: what it stands on stays as it is, and its driver may die as any."""

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

from kernel.abi.guest_config import DiskConfig, GuestConfig
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load

MIB = 1 << 20
KILLS, SEED = 60, 4
SERVES_S = 0.1
"""At most, after its rings are mapped: to start a storage daemon takes 10 to 20 ms of it, so kills meet that too."""
DRIVER = "qcowback"
SETTINGS: dict[str, Any] = {
    "name": DRIVER,
    "role": "drivers.blkback.qcow2",
    "image_format": "qcow2",
    "program": "/usr/bin/qemu-storage-daemon",
}


@pytest.fixture(scope="module", params=[True, False], ids=["standby", "cold"])
def lab(request, tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), standby=request.param, **SETTINGS) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_guest_left(lab):
    yield
    lab.destroy_all()


def qemu_img(*words: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def overlay(base: Path, *size: str) -> Path:
    image = base.with_suffix(".qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image, *size)
    return image


def create(lab: Lab, image: Path, backing: Path | None, *, name: str = "g", access: Literal["rw", "ro"] = "rw") -> None:
    disk = DiskConfig(
        target=str(image),
        vdev="vda",
        access=access,
        backend=DRIVER,
        format="qcow2",
        backing=None if backing is None else str(backing),
    )
    lab.client.create(GuestConfig(name=name, memory=96, disk=[disk]))
    lab.note_vbds()


def damage(image: Path) -> int:
    """Errors in an image. What a kill leaves allocated and unused is none: it costs space alone, until a repair."""
    checked = subprocess.run(
        ["qemu-img", "check", "--output=json", "-f", "qcow2", image], capture_output=True, check=False
    )
    told = orjson.loads(checked.stdout)
    return int(told.get("corruptions", 0)) + int(told["check-errors"])


def content(image: Path) -> bytes:
    """The disk that it makes, as QEMU reads it when nobody else does."""
    raw = image.with_suffix(".content")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def test_kills_of_the_serving_driver_under_load_lose_nothing_and_leave_the_image_whole(lab, tmp_path):
    base = tmp_path / "base"
    base.write_bytes(os.urandom(32 * MIB))
    image = overlay(base)
    create(lab, image, base)
    before = base.read_bytes()
    instants = random.Random(SEED)
    with verified_load(lab.client, "g", depth=32, span="16m") as load:
        deaths = []
        for _ in range(KILLS):
            time.sleep(instants.uniform(0, SERVES_S))
            deaths.append(lab.watch.kill())
    assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
    assert load.report is not None
    assert load.report.operations > KILLS
    lab.client.destroy("g")
    assert base.read_bytes() == before
    assert damage(image) == 0
    assert content(image)[16 * MIB :] == before[16 * MIB :]
