"""The documents are true: their commands are run as they stand, and what they name is there.

Blocks of shell commands are run with a hypervisor beside them, in a folder of the document's own; a `make` target is
looked for.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel.abi.cache import program_path
from kernel.doctor import examine
from kernel.doctor.finding import carries_all

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for part in (".", "docs", "kernel", "bench") for path in sorted((ROOT / part).glob("*.md"))]
BLOCKS = {path: re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL) for path in DOCUMENTS}
WITH_COMMANDS = [path for path in DOCUMENTS if any(not block.startswith("make ") for block in BLOCKS[path])]

IN_THE_TREE = ROOT / "CONTRIBUTING.md"
"""Its commands are for somebody who stands in the source tree: it is given a copy, since some of them write there."""
NOT_SOURCE = ("__pycache__", ".*", "runs", "build", "dist")

LONG_S = 600
"""Among the commands are tests."""

ACTIVATE = ". .venv/bin/activate\n"
HYPERVISOR = "python -m kernel\n"
DOCTOR = "python -m kernel doctor\n"
STATUS_OF_DOCTOR = 0 if carries_all(examine()) else 1
"""A host that does not carry every promise is told so by it, and may go on."""

NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|toml|md|c))(?::([\w.]+))?`")
FOLDER = re.compile(r"`((?:kernel|domains|drivers|triovisor|tests|bench|docs)/[\w/]*)`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def folder(request, tmp_path):
    """Where somebody who reads that document stands."""
    if request.param == IN_THE_TREE:
        shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCE), symlinks=True)
        return tmp_path / "tree"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def environment_in(folder: Path) -> dict[str, str]:
    """As a person has it after `make setup` and activating the virtual environment."""
    path = f"{Path(sys.executable).parent}:{program_path()}"
    source = folder if (folder / "kernel").is_dir() else ROOT
    return {**os.environ, "PATH": path, "PYTHONPATH": str(source), "TRIOVISOR_RUNS": str(folder / "runs")}


@contextmanager
def hypervisor_in(folder: Path) -> Iterator[None]:
    with subprocess.Popen(
        ["python", "-m", "kernel"], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=folder,
        env=environment_in(folder),
    ) as hypervisor:  # fmt: skip
        assert hypervisor.stdout is not None
        for line in hypervisor.stdout:
            if line.startswith("ready:"):
                break
        try:
            yield
        finally:
            hypervisor.send_signal(signal.SIGINT)
        assert hypervisor.wait(20) == 0


def test_the_make_targets_exist():
    text = "\n".join(block for blocks in BLOCKS.values() for block in blocks)
    targets = set(re.findall(r"^make (\w+)$", text, re.MULTILINE))
    targets |= {name for path in DOCUMENTS for name in re.findall(r"`make (\w+)`", path.read_text())}
    assert {"demo", "test", "setup", "mutants"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize(
    ("document", "folder"),
    [(path, path) for path in WITH_COMMANDS],
    ids=map(name_of, WITH_COMMANDS),
    indirect=["folder"],
)
def test_every_other_block_of_commands_runs_as_it_stands(document, folder):
    with hypervisor_in(folder):
        for block in BLOCKS[document]:
            if block.startswith("make ") or block == HYPERVISOR:
                continue
            done = subprocess.run(
                ["bash", "-e", "-c", block.removeprefix(ACTIVATE)], capture_output=True, text=True, check=False,
                stdin=subprocess.DEVNULL, cwd=folder, env=environment_in(folder),
            )  # fmt: skip
            status = STATUS_OF_DOCTOR if block.endswith(DOCTOR) else 0
            assert done.returncode == status, f"{block}\n{done.stdout}\n{done.stderr}"


def test_the_documents_with_commands_are_found():
    assert {"README.md", "CONTRIBUTING.md"} <= set(map(name_of, WITH_COMMANDS))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_document_links_only_to_what_exists(document):
    for name in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_function_and_folder_that_a_document_names_is_there(document):
    text = document.read_text()
    for file, symbol in NAMED.findall(text):
        if "/" not in file and not symbol:
            continue  # a file in a run's folder, or any of its name
        found = [ROOT / file] if "/" in file else [path for path in source_files() if path.name == file]
        assert found, file
        assert found[0].exists(), file
        assert not symbol or any(symbol in defined_in(path) for path in found), f"{file}:{symbol}"
    for place in FOLDER.findall(text):
        assert (ROOT / place).exists() or (ROOT / f"{place}.py").exists(), place


def source_files() -> list[Path]:
    return [path for part in ROOT.iterdir() if part.is_dir() and part.name[0] != "." for path in part.rglob("*.*")]


def defined_in(path: Path) -> set[str]:
    """Functions, classes, `Class.method` and constants of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names |= _names(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for each in node.body for name in _names(each)}
    return names


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def test_a_function_that_is_not_there_is_noticed():
    assert {"Vbd", "Vbd.activate", "KEPT_SWITCHES"} <= defined_in(ROOT / "domains/frontends/vbd.py")
    assert "Vbd.no_such_function" not in defined_in(ROOT / "domains/frontends/vbd.py")
    assert NAMED.findall("`a/b.py:C.d` and `e.toml` and `f/g`") == [("a/b.py", "C.d"), ("e.toml", "")]


def test_every_promise_is_explained_and_shown_by_a_test():
    """`docs/recovery.md` names each file of `tests/promises`, and no other."""
    named = re.findall(r"tests/promises/(test_\w+\.py)", (ROOT / "docs/recovery.md").read_text())
    assert sorted(named) == sorted(path.name for path in (ROOT / "tests/promises").glob("test_*.py"))
