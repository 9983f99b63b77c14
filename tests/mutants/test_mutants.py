"""The mutants: each is about code and tests that are there; a few are seen red here, all of them by `make mutants`."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import judge_all, main, sample
from tests.mutants.catalogue import ROOT, Mutant, TextGone, load, mutate
from tests.mutants.judging import Judge, VerdictKind
from tests.promises.events import wait_until

MUTANTS = load()
SAMPLE = 4
AS_LONG_AS_IT_TAKES = 600

RESTART = "kernel/core/restart.py"
POLICY_TEST = "tests/kernel/core/test_restart.py"


def mutant(text: str, becomes: str, test: str = POLICY_TEST) -> Mutant:
    return Mutant("tried", RESTART, text, becomes, "something that matters", [test])


@pytest.fixture
def judge(tmp_path):
    return Judge(tmp_path)


def test_there_are_as_many_as_were_promised_each_with_a_name_of_its_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 25


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_about_code_and_tests_that_are_there(mutant):
    source = (ROOT / mutant.file).read_text()
    assert ast.dump(ast.parse(mutate(mutant, source))) != ast.dump(ast.parse(source)), "it changes nothing"
    for test in mutant.red_by:
        path, _, name = test.partition("::")
        assert name.partition("[")[0] in (ROOT / path).read_text(), test


@pytest.mark.timeout(AS_LONG_AS_IT_TAKES)
def test_a_sample_is_seen_red(capsys):
    status = main(["--fast", "--sample", str(SAMPLE)])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "--seed" in said, "what to run again"


def test_a_sample_is_the_same_for_the_same_seed():
    assert sample(MUTANTS, 5, 7) == sample(MUTANTS, 5, 7) != sample(MUTANTS, 5, 8)


def test_a_mutant_that_no_test_sees_makes_the_run_fail():
    unseen = mutant("if paid <= 0:", "if paid <= 0 or False:")
    rows: list[str] = []
    assert not judge_all([unseen], rows.append)
    assert rows[0].startswith("SURVIVED  tried")
    assert rows[-1] == "1 mutants: 1 SURVIVED"


@pytest.mark.parametrize(
    ("text", "becomes", "why"),
    [
        ("if paid <= 0:", "if payed <= 0:", "NameError"),
        ("if paid <= 0:", "if paid <= 0", "expected ':'"),
        ('"""When a dead', 'import nothing_of_this_name\n"""When a dead', "collection failure"),
        ("a text that is not there", "", "0 times"),
        ("return", "", "3 times"),
    ],
    ids=["a name that is none", "no Python", "an import that fails", "no text", "a text more than once"],
)
def test_code_that_cannot_run_shows_nothing(judge, text, becomes, why):
    verdict = judge.judge(mutant(text, becomes))
    assert verdict.kind is VerdictKind.UNFAIR
    assert why in verdict.why


def test_a_test_that_fails_without_the_mutant_shows_nothing(judge, tmp_path):
    broken = tmp_path / "tree" / "tests" / "kernel" / "core" / "test_broken.py"
    broken.write_text("def test_broken():\n    raise ValueError('broken anyway')\n")
    test = "tests/kernel/core/test_broken.py::test_broken"
    verdict = judge.judge(mutant("if paid <= 0:", "if paid <= 1:", test))
    assert verdict.kind is VerdictKind.UNFAIR
    assert "broken anyway" in verdict.why


def test_the_copy_is_whole_again_after_a_mutant(judge, tmp_path):
    assert judge.judge(mutant("if paid <= 0:", "if paid <= 1:")).kind is VerdictKind.RED
    assert judge.judge(mutant("if paid <= 0:", "if paid <= 0 or False:")).kind is VerdictKind.SURVIVED
    assert (tmp_path / "tree" / RESTART).read_text() == (ROOT / RESTART).read_text()


def test_a_text_that_is_gone_is_told_with_the_mutants_name():
    with pytest.raises(TextGone, match=r"tried: its text is 0 times in kernel/core/restart.py"):
        mutate(mutant("gone", ""), (ROOT / RESTART).read_text())


def test_a_name_that_is_no_mutants_is_told_in_one_line(capsys):
    assert main(["no-such-mutant"]) == 2
    assert capsys.readouterr().err == "no such mutant: no-such-mutant: tests/mutants/*.toml has them\n"


@pytest.fixture
def run(tmp_path):
    """A run of one mutant, whose folder is made in `tmp_path`, and the process of its test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mutants", "early-answer"], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    yield process, wait_until(lambda: [pid for pid in pids_in(tmp_path) if pid != process.pid], "its test runs")[0]
    if process.poll() is None:
        process.kill()
    process.communicate()


def pids_in(folder: Path) -> list[int]:
    """Processes whose working folder is below this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def folders_in(place: Path) -> list[Path]:
    return list(place.glob("triovisor-mutants.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_interrupted_leaves_nothing_behind(run, tmp_path, number):
    process, _ = run
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert not folders_in(tmp_path)
    wait_until(lambda: not pids_in(tmp_path), "its test has ended too")


def test_what_a_killed_run_has_left_is_removed_by_the_next_one_and_what_a_living_one_has_is_not(run, tmp_path):
    process, _ = run
    (folder,) = folders_in(tmp_path)

    def run_another() -> None:
        command = [sys.executable, "-m", "tests.mutants", "backs-off-one-death-late"]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    process.send_signal(signal.SIGSTOP)
    run_another()
    assert folders_in(tmp_path) == [folder]
    process.kill()
    process.wait()
    wait_until(lambda: not pids_in(tmp_path), "its test has ended with it")
    assert folders_in(tmp_path) == [folder]
    run_another()
    assert not folders_in(tmp_path)
