"""The console driver is killed again and again while a guest writes as fast as it can and somebody types: the file,
what watchers see, and what arrives in the guest are whole, in order, and nothing is there twice."""

import os
import re
import signal
import time

import pytest

from tests.promises.console_ends import on_a_terminal, piped
from tests.promises.events import wait_until
from tests.promises.lab import start_lab

KILLS = 30
TYPED = 6000
CONSOLE = "console"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), console=True) as started:
        yield started


@pytest.fixture
def guest(lab):
    lab.create("g")
    lab.run_in("g", "true")
    yield "g"
    lab.destroy_all()


def kill(lab) -> None:
    """And wait until another is there."""
    pid = next(driver.pid for driver in lab.client.drivers() if driver.name == CONSOLE)
    since = lab.log.mark()
    os.kill(pid, signal.SIGKILL)
    lab.log.wait("domain.cloned", since=since, name=CONSOLE)


def numbers(text: bytes, mark: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^" + mark + rb"(\d+)\r?$", text, re.MULTILINE)]


def test_what_a_guest_writes_is_whole_in_the_file_and_for_a_watcher(lab, guest, tmp_path):
    """The shell on the console writes, since two writers' lines would mix."""
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\n")
        wait_until(lambda: b"/ #" in (tmp_path / "seen").read_bytes(), "a shell")
        console.type(b"i=0; while [ ! -e /tmp/stop ]; do echo line $i; i=$((i+1)); done; echo the end\n")
        for _ in range(KILLS):
            time.sleep(0.05)
            kill(lab)
        lab.run_in(guest, "touch", "/tmp/stop")
        wait_until(lambda: b"\nthe end" in (tmp_path / "seen").read_bytes(), "the end")
        status, said = console.end()
    assert (status, said) == (0, "tv: input has ended\n")
    written = numbers((lab.run / "console" / "g.log").read_bytes(), b"line ")
    assert written == list(range(len(written)))
    assert len(written) > 1000
    assert numbers((tmp_path / "seen").read_bytes(), b"line ") == written


def test_every_key_arrives_once_and_in_order(lab, guest, tmp_path):
    typed = b"".join(b"%07d\n" % number for number in range(TYPED))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\n")
        wait_until(lambda: b"/ #" in (tmp_path / "seen").read_bytes(), "a shell")
        console.type(b"stty -echo; cat > /tmp/typed; echo the $((0)) end\n")
        step = len(typed) // KILLS
        for kill_number in range(KILLS):
            console.type(typed[kill_number * step : (kill_number + 1) * step])
            kill(lab)
        console.type(typed[KILLS * step :] + b"\x04")
        wait_until(lambda: b"the 0 end" in (tmp_path / "seen").read_bytes(), "the end of what was typed")
        assert console.end() == (0, "tv: input has ended\n")
    assert lab.run_in(guest, "cat", "/tmp/typed") == typed


def test_a_second_watcher_sees_what_the_first_sees_and_the_writer_stays_the_writer(lab, guest, tmp_path):
    with on_a_terminal(lab.run, guest) as first, on_a_terminal(lab.run, guest) as second:
        second.wait(b"somebody else has the keyboard")
        first.type(b"\r")
        first.wait(b"/ #")
        for number in range(5):
            kill(lab)
            first.type(b"echo round-$((100 + %d))\r" % number)
            first.wait(b"round-%d" % (100 + number))
            second.wait(b"round-%d" % (100 + number))
    assert b"keyboard" not in first.shown + second.shown
