"""Every command that the README shows is run as it stands, in a folder of its own; a `make` target is looked for."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.abi.cache import program_path
from kernel.doctor import examine
from kernel.doctor.finding import carries_all

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

ACTIVATE = ". .venv/bin/activate\n"
HYPERVISOR = "python -m kernel\n"
DOCTOR = "python -m kernel doctor\n"
STATUS_OF_DOCTOR = 0 if carries_all(examine()) else 1
"""A host that does not carry every promise is told so by it, and may go on."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """As a person has it after `make setup` and activating the virtual environment, in a folder of his own."""
    folder = tmp_path_factory.mktemp("readme")
    path = f"{Path(sys.executable).parent}:{program_path()}"
    return {
        "cwd": folder,
        "env": {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TRIOVISOR_RUNS": str(folder / "runs")},
    }


def run(text, environment):
    return subprocess.run(
        ["bash", "-e", "-c", text], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **environment
    )


def test_the_make_targets_exist():
    targets = re.findall(r"^make (\w+)$", "\n".join(BLOCKS), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_other_block_of_commands_runs_as_it_stands(environment):
    with subprocess.Popen(
        ["python", "-m", "kernel"], stdout=subprocess.PIPE, text=True, start_new_session=True, **environment
    ) as hypervisor:
        assert hypervisor.stdout is not None
        for line in hypervisor.stdout:
            if line.startswith("ready:"):
                break
        try:
            for block in BLOCKS:
                if block.startswith("make ") or block == HYPERVISOR:
                    continue
                done = run(block.removeprefix(ACTIVATE), environment)
                status = STATUS_OF_DOCTOR if block.endswith(DOCTOR) else 0
                assert done.returncode == status, f"{block}\n{done.stdout}\n{done.stderr}"
        finally:
            hypervisor.send_signal(signal.SIGINT)
        assert hypervisor.wait(20) == 0


def test_the_readme_names_only_files_that_exist():
    for name in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name
