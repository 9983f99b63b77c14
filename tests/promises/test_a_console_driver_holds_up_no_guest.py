"""Whatever the console driver and its watchers do or leave undone, a guest goes on; what a watcher missed is told."""

import contextlib
import os
import re
import signal
import subprocess

import pytest

from tests.promises.console_ends import TV, on_a_terminal
from tests.promises.events import EventLog, wait_until
from tests.promises.lab import start_lab
from triovisor.console import End

CONSOLE = "console"
COUNT = "i=0; while [ $i -lt {} ]; do echo {} $i; i=$((i+1)); done > /dev/console"


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


def numbers(text: bytes, mark: str) -> list[int]:
    return [int(number) for number in re.findall(rb"^%s (\d+)\r?$" % mark.encode(), text, re.MULTILINE)]


def file_of(lab) -> bytes:
    content: bytes = (lab.run / "console" / "g.log").read_bytes()
    return content


def arm(lab, what: str) -> None:
    """And wait until the driver knows: what is typed to it comes another way."""
    generation = next(driver.generation for driver in lab.client.drivers() if driver.name == CONSOLE)
    lab.client.inject(CONSOLE, what)
    EventLog(lab.run / "log" / f"{CONSOLE}.{generation}.jsonl").wait("fault.armed", what=what)


@pytest.mark.parametrize("what", ["hang", "exit", "crash@output", "crash@keys", "crash@attach"])
def test_a_driver_may_fail_at_any_point_of_its_work(lab, guest, what):
    first, second = (f"{word}-by-{what}".encode() for word in ("first", "second"))
    with on_a_terminal(lab.run, guest) as screen:
        screen.type(b"\r")
        screen.wait(b"/ #")
        since = lab.log.mark()
        arm(lab, what)
        screen.type(b"echo =%s=\r" % first)
        if what == "crash@attach":
            with on_a_terminal(lab.run, guest, "--watch") as another:
                another.wait(b"\n=%s=" % first)
        lab.log.wait("domain.died", since, name=CONSOLE)
        screen.type(b"echo =%s=\r" % second)
        screen.wait(b"\n=%s=" % first)
        screen.wait(b"\n=%s=" % second)
    assert [file_of(lab).count(b"\n=%s=" % word) for word in (first, second)] == [1, 1]


def test_a_watcher_who_does_not_look_is_outrun_and_told_how_much_he_missed(lab, guest):
    with on_a_terminal(lab.run, guest, "--watch") as screen:
        screen.wait(b"you are watching")
        lab.run_in(guest, "sh", "-c", COUNT.format(60_000, "unseen"))
        wait_until(lambda: numbers(file_of(lab), "unseen")[-1:] == [59_999], "all of it in the file")
        lab.run_in(guest, "sh", "-c", "echo the end > /dev/console")
        screen.wait(b"the end")
    assert numbers(file_of(lab), "unseen") == list(range(60_000))


def test_what_was_missed_is_told_to_the_byte(lab, guest, tmp_path):
    """The watcher is stopped, so that it takes nothing at all."""
    with (tmp_path / "seen").open("wb") as seen, (tmp_path / "said").open("wb") as said:
        watching = subprocess.Popen(
            [*TV, "--run", str(lab.run), "console", guest, "--watch"], stdin=subprocess.PIPE, stdout=seen, stderr=said
        )
        try:
            wait_until(lambda: b"watching" in (tmp_path / "said").read_bytes(), "it watches")
            os.kill(watching.pid, signal.SIGSTOP)
            before = len(file_of(lab))
            lab.run_in(guest, "sh", "-c", COUNT.format(60_000, "missed"))
            wait_until(lambda: numbers(file_of(lab), "missed")[-1:] == [59_999], "all of it in the file")
            os.kill(watching.pid, signal.SIGCONT)
            assert watching.stdin is not None
            wait_until(lambda: b"missed 59999" in (tmp_path / "seen").read_bytes(), "the last of it")
            watching.stdin.close()
            assert watching.wait(20) == End.DETACHED
        finally:
            watching.kill()
    written = len(file_of(lab)) - before
    missed = [int(count) for count in re.findall(rb"(\d+) bytes went by unseen", (tmp_path / "said").read_bytes())]
    assert missed
    assert len((tmp_path / "seen").read_bytes()) + sum(missed) == written


def test_guests_write_and_reboot_where_the_driver_was_given_up(tmp_path):
    restart = "{ free_deaths = 1, max_deaths = 2, backoff_s = 0.01 }"
    with start_lab(tmp_path, console=True, console_restart=restart) as lab:
        lab.create("g")
        lab.run_in("g", "true")
        with on_a_terminal(lab.run, "g", "--watch") as screen:
            screen.wait(b"you are watching")
            while not lab.log.all("driver.given_up", name=CONSOLE):
                pid = next(driver.pid for driver in lab.client.drivers() if driver.name == CONSOLE)
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            lab.run_in("g", "sh", "-c", COUNT.format(60_000, "alone"))
            wait_until(lambda: numbers(file_of(lab), "alone") == list(range(60_000)), "all of it in the file")
            assert screen.end() == End.LOST
        done = subprocess.run([*TV, "--run", str(lab.run), "console", "g"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (End.REFUSED, 1)
        assert "no console driver takes orders now" in done.stderr
        lab.client.shutdown("g", reboot=True, wait_s=20)
        assert lab.run_in("g", "echo", "alive") == b"alive\n"
        lab.destroy_all()
