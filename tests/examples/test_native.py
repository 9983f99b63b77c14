"""Each native program in `examples/`, started with the TOML beside it as the README has it, does what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises.lab import ROOT, start_lab
from tests.promises.native import console_of, last_end

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run")) as started:
        yield started


@pytest.fixture
def examples(tmp_path) -> Path:
    """A copy, with the image that its TOMLs name, on a path as the clone has it."""
    folder: Path = tmp_path / "examples" / "native"
    shutil.copytree(ROOT / "examples" / "native", folder)
    with (tmp_path / "native.img").open("wb") as image:
        image.truncate(16 * MIB)
    return folder


def tv_create(lab, toml: Path) -> None:
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), "create", str(toml)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def shorten(toml: Path, args: str) -> None:
    """A test has less patience than a person."""
    text, count = re.subn(r"^args = \[.*?\]", f"args = {args}", toml.read_text(), flags=re.MULTILINE)
    assert count == 1
    toml.write_text(text)


def said_to_its_end(lab, name: str) -> list[str]:
    end = last_end(lab, name)
    said = console_of(lab, name)
    assert end["reason"] == "poweroff", f"{end} {said}"
    return said.splitlines()


def test_every_program_has_a_toml_and_every_toml_a_test():
    names = {path.stem for path in (ROOT / "examples" / "native").glob("*.toml")}
    assert names == {"diskbench", "ping", "pong", "verify"}
    programs = {path.name for path in (ROOT / "examples" / "native").glob("*.py")}
    tomls = "".join(path.read_text() for path in (ROOT / "examples" / "native").glob("*.toml"))
    assert programs == set(re.findall(r'^program = "(.*)"', tomls, re.MULTILINE))


def test_diskbench_prints_a_row_for_each_job(lab, examples):
    shorten(examples / "diskbench.toml", '["0.1"]')
    tv_create(lab, examples / "diskbench.toml")
    first, head, *rows = said_to_its_end(lab, "diskbench")
    assert first == "vda: 16 MiB, overwritten"
    assert "requests/s" in head
    assert len(rows) == 7
    for row in rows:
        assert all(float(word.replace(",", "")) > 0 for word in row.split()[-5:]), row


def test_ping_and_pong_print_the_round_trips_of_both_ways(lab, examples):
    shorten(examples / "ping.toml", '["ping", "pong", "300"]')
    tv_create(lab, examples / "pong.toml")
    tv_create(lab, examples / "ping.toml")
    head, messages, shared = said_to_its_end(lab, "ping")
    assert "median" in head
    for row, what in ((messages, "message channel"), (shared, "shared page")):
        rounds, median, p95 = (float(word.replace(",", "")) for word in row.removeprefix(what).split())
        assert rounds == 300
        assert 0 < median <= p95
    assert said_to_its_end(lab, "pong")[-1].endswith("is gone")


def test_verify_proves_what_was_acknowledged(lab, examples):
    shorten(examples / "verify.toml", '["1", "4"]')
    tv_create(lab, examples / "verify.toml")
    _, writes, verified, outages = said_to_its_end(lab, "verify")
    assert int(writes.split()[0].replace(",", "")) > 0
    assert re.fullmatch(r"[\d,]+ records verified, 0 lost", verified)
    assert outages.startswith("0 drivers lost, ")
