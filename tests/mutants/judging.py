"""Breaking a copy of the project, and seeing whether its tests notice."""

import contextlib
import ctypes
import enum
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.mutants.catalogue import ROOT, Mutant, TextGone, mutate
from tests.mutants.copies import TREE

__all__ = ["Judge", "Verdict", "VerdictKind"]

PARTS = ("kernel", "domains", "drivers", "triovisor", "tests")
"""What the tests need of the project, beside `pyproject.toml`."""

TEST_S, SLOW_TEST_S = 40, 150
"""For one case of a test: one that hangs is red. The second for a slow one."""
RUN_S, END_S = 300.0, 30.0
"""For all cases of one test, and for what it has started to be gone then."""

PR_SET_PDEATHSIG = 1
"""`linux/prctl.h`."""

NOT_BEHAVIOUR = ("SyntaxError", "IndentationError", "NameError", "UnboundLocalError", "ImportError",
                 "ModuleNotFoundError", "AttributeError", "LabError")  # fmt: skip
"""Code that cannot run at all shows nothing about a test. The last: the hypervisor did not start."""


AFTERWARDS = 'failed on teardown with "'
"""What a fixture asserts after its test is part of it."""


class VerdictKind(enum.Enum):
    """What became of a mutant."""

    RED = "red"
    SURVIVED = "SURVIVED"
    UNFAIR = "UNFAIR"
    """No test has seen what it does: the code does not run, its text is gone, or the tests fail without it too."""
    NOT_POSSIBLE = "not here"
    """Its tests need what this host has not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is in one line."""

    kind: VerdictKind
    why: str
    took_s: float


@dataclass(frozen=True, slots=True)
class _Run:
    """One test's run: how many cases passed, and the first words of each that failed, or could not even begin."""

    passed: int
    failed: tuple[str, ...]
    errors: tuple[str, ...]


class Judge:
    """A copy of the project in `folder`, which the caller removes."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self._tree = folder / TREE
        self._report = folder / "report.xml"
        for part in PARTS:
            shutil.copytree(root / part, self._tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", self._tree)
        folder.chmod(0o755)  # jailed domains have users of their own
        self._unbroken: dict[str, _Run] = {}

    def judge(self, mutant: Mutant) -> Verdict:
        """Run the mutant's tests without it, unless they were run so before, then with it."""
        began_s = time.monotonic()
        try:
            kind, why = self._judge(mutant)
        except (TextGone, SyntaxError) as error:
            kind, why = VerdictKind.UNFAIR, str(error)
        return Verdict(kind, why, time.monotonic() - began_s)

    def _judge(self, mutant: Mutant) -> tuple[VerdictKind, str]:
        for test in mutant.red_by:
            run = self._unbroken.get(test) or self._unbroken.setdefault(test, self._run(test, mutant.slow))
            if run.failed or run.errors:
                return VerdictKind.UNFAIR, f"{test} fails without it: {(run.failed or run.errors)[0]}"
            if not run.passed:
                return VerdictKind.NOT_POSSIBLE, f"{test} is skipped"
        with self._broken(mutant):
            runs = {test: self._run(test, mutant.slow) for test in mutant.red_by}
        for test, run in runs.items():
            if run.failed and not run.failed[0].startswith(NOT_BEHAVIOUR):
                continue
            if run.failed or run.errors:
                return VerdictKind.UNFAIR, f"{test}: {(run.failed or run.errors)[0]}"
            return VerdictKind.SURVIVED, f"{test} is green: {mutant.breaks}"
        return VerdictKind.RED, runs[mutant.red_by[0]].failed[0]

    @contextlib.contextmanager
    def _broken(self, mutant: Mutant) -> Iterator[None]:
        path = self._tree / mutant.file
        source = path.read_text()
        try:
            self._write(path, mutate(mutant, source))
            yield
        finally:
            self._write(path, source)

    def _write(self, path: Path, source: str) -> None:
        """Bytecode is found by its source's size and second, and both may be the same before and after."""
        path.write_text(source)
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def _run(self, test: str, slow: bool) -> _Run:
        self._report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [f"--timeout={SLOW_TEST_S if slow else TEST_S}", "--hypothesis-profile=mutants"]
        command += [f"--junitxml={self._report}", "-o", "junit_family=xunit1", test]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with subprocess.Popen(
            command, cwd=self._tree, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=_end_with_parent,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=RUN_S)
            except subprocess.TimeoutExpired:
                _end(process)
                return _Run(0, (f"no end within {RUN_S:g} s",), ())
            except BaseException:  # we are interrupted ourselves
                _end(process)
                raise
        if not self._report.exists():
            return _Run(0, (), (said.strip().rpartition("\n")[2],))
        return _read(self._report)


def _end_with_parent() -> None:
    """In the child: Ctrl-C when the run is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _end(process: subprocess.Popen[str]) -> None:
    """As a terminal's Ctrl-C does, so that what the test has started is taken down; then by force."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _read(report: Path) -> _Run:
    cases = list(ElementTree.parse(report).iter("testcase"))
    troubles = {kind: [each for case in cases for each in case.iter(kind)] for kind in ("failure", "error", "skipped")}
    passed = len(cases) - sum(len({id(case) for case in cases if case.find(kind) is not None}) for kind in troubles)
    words = {kind: [_first_line(each) for each in troubles[kind]] for kind in troubles}
    failed = words["failure"] + [word[len(AFTERWARDS) :] for word in words["error"] if word.startswith(AFTERWARDS)]
    errors = [word for word in words["error"] if not word.startswith(AFTERWARDS)]
    return _Run(max(passed, 0), tuple(failed), tuple(errors))


def _first_line(trouble: ElementTree.Element) -> str:
    return (trouble.get("message") or "no message").partition("\n")[0][:150]
