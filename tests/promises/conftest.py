"""What the tests of the promises stand on: the host's parts, images in memory, and a count of what was not possible."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel.doctor import require

PARTS = (
    "architecture", "pidfd", "memfd", "ofd-locks", "namespaces.user", "namespaces.pid", "namespaces.mount",
    "namespaces.net", "namespaces.ipc", "seccomp", "guest-kernel", "guest-modules", "initramfs", "py-spy",
)  # fmt: skip
"""Without any of these a promise cannot be kept here: the test fails with the doctor's line."""

NOT_POSSIBLE = "not possible here: "


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


def pytest_terminal_summary(terminalreporter) -> None:
    """No silent skip: what this host cannot have is counted and named at the end."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    lacking = [reason.partition(NOT_POSSIBLE)[2] for reason in reasons if NOT_POSSIBLE in reason]
    if lacking:
        terminalreporter.section(f"{len(lacking)} tests not possible here")
        for reason in lacking:
            terminalreporter.line(reason)
