"""What the adversaries' tests stand on: one hypervisor for each file, and a look after each attack that all is well."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.doctor import require
from tests.adversaries.lab import Lab, start_lab, tree_of_puppets

PARTS = ("architecture", "pidfd", "memfd", "ofd-locks", "guest-kernel", "initramfs")


@pytest.fixture(scope="session", autouse=True)
def _host_has_what_guests_need() -> None:
    for part in PARTS:
        require(part)


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    return tree_of_puppets(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    """A folder on tmpfs, gone at the end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="triovisor-adversaries.") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tree, images) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("run"), tree, images) as started:
        yield started


@pytest.fixture
def calm(lab) -> Iterator[Lab]:
    """The lab; and afterwards nobody innocent is harmed and the hypervisor has no more descriptors than before."""
    yield lab
    lab.check_innocents()
    lab.check_descriptors()
