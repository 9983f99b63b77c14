"""The guest's programs. They are static, so the host runs them too."""

import json
import subprocess
from pathlib import Path

import pytest

from triovisor.provision.programs import build_programs


def run(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """By the name in `argv[0]`, as the guest's links do it."""
    executable, _ = build_programs()
    return subprocess.run([program, *map(str, words)], executable=executable, capture_output=True, text=True)


def account(done: subprocess.CompletedProcess[str]) -> dict:
    told: dict = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records"
    done = run("records", "write", path, "count=20", "every_ms=0", "run=7")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:-1] == [f"acked {n}" for n in range(20)]
    told = account(done)
    assert (told["acknowledged"], told["last"], told["io_errors"]) == (20, 19, 0)
    return path


def test_records_that_are_all_there_are_verified(records):
    done = run("records", "verify", records, "acked=19", "run=7")
    assert account(done) == {"verified": 20, "lost": 0, "corrupt": 0, "first_bad": -1}
    assert done.returncode == 0


def test_a_second_run_goes_on_where_the_first_ended(records):
    assert account(run("records", "write", records, "count=5", "run=7"))["last"] == 24
    assert account(run("records", "verify", records, "acked=24", "run=7"))["verified"] == 25


def test_lost_and_corrupt_records_are_told_apart(records):
    with records.open("r+b") as file:
        file.seek(3 * 4096 + 4095)
        file.write(b"\xee")
        file.seek(5 * 4096)
        file.write(bytes(4096))
        file.seek(8 * 4096)
        file.write(records.read_bytes()[9 * 4096 : 10 * 4096])
        file.truncate(18 * 4096)
    done = run("records", "verify", records, "acked=19", "run=7")
    assert account(done) == {"verified": 15, "lost": 3, "corrupt": 2, "first_bad": 3}
    assert done.returncode == 1


def test_records_of_another_run_are_no_records(records):
    assert account(run("records", "verify", records, "acked=19", "run=8"))["corrupt"] == 20


def test_a_file_that_is_not_there_has_lost_all(tmp_path):
    assert account(run("records", "verify", tmp_path / "none", "acked=4"))["lost"] == 5


def test_slow_records_are_listed_the_longest_of_them(tmp_path):
    told = account(run("records", "write", tmp_path / "records", "count=300", "slow_ms=0"))
    outages = told["outages"]
    assert len(outages) == 256
    assert told["outages_not_listed"] == 44
    assert [outage["seq"] for outage in outages] == sorted(outage["seq"] for outage in outages)
    assert max(outage["ms"] for outage in outages) == told["max_ms"]


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "device"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    return path


@pytest.mark.parametrize("words", ["op=read", "op=write depth=32", "op=fsync", "op=read size=1m depth=4"])
def test_a_load_says_what_it_did(device, words):
    told = account(run("load", device, "seconds=0.1", *words.split()))
    assert told["errors"] == 0
    assert told["operations"] > 0
    assert 0 < told["p50_us"] <= told["p95_us"] <= told["p99_us"]
    assert told["gap_us"] > 0


@pytest.mark.parametrize("depth", [1, 16])
def test_a_verified_load_finds_what_it_wrote(device, depth):
    told = account(run("load", device, "op=verify", f"depth={depth}", "seconds=0.2"))
    assert (told["errors"], told["corrupt"]) == (0, 0)
    assert told["final"] > 0


@pytest.mark.parametrize("words", ["", "frobnicate x", "write", "write x count=ten", "write x a=1"])
def test_records_without_sense_are_answered_by_the_usage(words):
    done = run("records", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: records")


@pytest.mark.parametrize("words", ["", "x op=jump", "x depth=33", "x size=1", "x size=4q", "x y"])
def test_a_load_without_sense_is_answered_by_the_usage(words):
    done = run("load", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: load")


def test_an_unknown_name_is_said():
    assert "call it by the name" in run("frobnicate").stderr


def test_zero_makes_a_range_zeros_and_says_what_it_cannot(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 12288)
    assert run("zero", file, "4096", "4096", "unmap").returncode == 0
    assert file.read_bytes() == b"x" * 4096 + bytes(4096) + b"x" * 4096
    refused = run("zero", file, "0", "4096")
    assert (refused.returncode, refused.stderr) == (1, f"zero: {file}: Not a tty\n")
    for words in ((), ("f", "0"), ("f", "0", "4096", "all"), ("f", "0", "4096", "unmap", "more")):
        assert run("zero", *words).returncode == 2
    assert file.read_bytes() == b"x" * 4096 + bytes(4096) + b"x" * 4096
