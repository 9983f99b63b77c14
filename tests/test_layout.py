"""The layout's import rules: held by contracts over the source, and by a wall in a fresh interpreter for each role."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernel", "domains", "drivers", "triovisor")
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINT_IMPORTS), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> list[str]:
    """Every module under a package that can be imported without running a program."""
    names = map(module_name, sources(package.replace(".", "/")))
    return [name for name in names if not name.endswith("__main__")]


def roles() -> list[str]:
    """Every package whose code runs, or is imported, behind a wall of its own."""
    return sorted(
        module_name(folder / "__init__.py")
        for parent in ("domains", "drivers")
        for folder in (ROOT / parent).iterdir()
        if (folder / "__init__.py").is_file()
    )


@pytest.fixture
def skeleton(tmp_path):
    """The project's modules, all empty, under the project's contracts."""
    for source in (source for package in PACKAGES for source in sources(package)):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    (tmp_path / "drivers" / "another").mkdir()
    (tmp_path / "drivers" / "another" / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return tmp_path


def test_the_source_keeps_every_import_contract():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_project_without_imports_keeps_every_contract(skeleton):
    done = lint_imports(skeleton)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("kernel.abi", "kernel.core"),
        ("kernel.abi", "kernel.doctor"),
        ("kernel.core", "kernel.doctor"),
        ("kernel.core", "time"),
        ("kernel.core", "trio"),
        ("drivers.another.backend", "time"),
        ("kernel", "domains.runtime"),
        ("kernel", "drivers.blkback"),
        ("kernel", "triovisor"),
        ("domains.runtime", "kernel.core"),
        ("domains.runtime", "domains.virtio"),
        ("domains.virtio", "domains.frontends"),
        ("domains.frontends", "domains.native"),
        ("domains.native", "domains.guests"),
        ("domains.frontends", "domains.guests"),
        ("domains.guests", "domains.dom0"),
        ("domains.guests", "drivers.blkback"),
        ("domains.dom0", "triovisor"),
        ("drivers.blkback", "kernel.doctor"),
        ("drivers.blkback", "domains.virtio"),
        ("drivers.another", "drivers.blkback"),
        ("triovisor", "kernel.core"),
        ("triovisor", "domains.runtime"),
    ],
)
def test_an_import_against_the_arrows_breaks_a_contract(skeleton, importer, imported):
    folder = skeleton / importer.replace(".", "/")
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").touch()
    (folder / "culprit.py").write_text(f"import {imported}\n")
    done = lint_imports(skeleton)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{importer}.culprit -> {imported}" in done.stdout


@pytest.mark.parametrize("role", roles())
def test_a_role_imports_all_of_itself_behind_its_wall(role):
    script = f"""
import importlib
from domains.runtime.wall import put_up
put_up({role!r})
for name in {modules(role)!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("role", "imported"),
    [
        ("drivers.blkback", "domains.virtio"),
        ("domains.virtio", "domains.frontends"),
        ("domains.runtime", "kernel.core"),
    ],
)
def test_the_wall_refuses_an_import_against_the_arrows(role, imported):
    script = f"from domains.runtime.wall import put_up; put_up({role!r}); import {imported}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(f"{role} may not import {imported}")


@pytest.mark.parametrize(
    ("package", "sees"),
    [
        ("kernel.abi", {"kernel.abi"}),
        ("kernel.core", {"kernel.abi", "kernel.core"}),
        ("kernel", {"kernel"}),
        ("triovisor", {"kernel.abi", "triovisor"}),
    ],
)
def test_a_package_outside_the_walls_loads_nothing_that_it_may_not_see(package, sees):
    script = f"""
import importlib, sys
for name in {modules(package)!r}:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.partition(".")[0] in {PACKAGES!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split()) - {"kernel"}
    strangers = {name for name in loaded if not any(name == seen or name.startswith(f"{seen}.") for seen in sees)}
    assert strangers == set()
