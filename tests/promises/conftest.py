"""What the tests of the promises stand on: the host's parts, and images in memory."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.doctor import require

PARTS = (
    "architecture", "pidfd", "memfd", "ofd-locks", "seccomp", "guest-kernel", "guest-modules", "initramfs", "py-spy",
)  # fmt: skip
"""Without any of these a promise cannot be kept here: the test fails with the doctor's line."""


@pytest.fixture(scope="session", autouse=True)
def _host_has_what_guests_need() -> None:
    for part in PARTS:
        require(part)


@pytest.fixture(scope="module")
def images() -> Iterator[Callable[..., Path]]:
    """`images(name, mib=…)`: a sparse image of zeros on tmpfs, gone at the end of the module."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="triovisor-promises.") as folder:

        def make(name: str, mib: int = 16) -> Path:
            path = Path(folder) / f"{name}.img"
            with path.open("wb") as file:
                file.truncate(mib << 20)
            return path

        yield make


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder of the module's own."""
    folder: Path = tmp_path_factory.mktemp("run")
    return folder
