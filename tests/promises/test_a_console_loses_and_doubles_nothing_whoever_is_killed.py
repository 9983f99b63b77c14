"""The console driver, the guest's actor, or both at once are killed again and again while a guest writes as fast as it
can and somebody types: the file, what watchers see, and what arrives in the guest are whole, in order, and nothing is
there twice."""

import os
import re
import signal
import time

import pytest

from tests.promises.actors import actor_of, kill_actor
from tests.promises.console_ends import on_a_terminal, piped
from tests.promises.events import wait_until
from tests.promises.lab import start_lab

KILLS = 30
VICTIMS = ("driver", "actor", "both")
APART_S = 0.12
"""Between two kills: twenty deaths of actors in two seconds are the guest's crash."""
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


def kill(lab, guest: str, victim: str) -> None:
    """And wait until another is there."""
    since = lab.log.mark()
    if victim != "actor":
        os.kill(next(driver.pid for driver in lab.client.drivers() if driver.name == CONSOLE), signal.SIGKILL)
    if victim != "driver":
        kill_actor(lab, guest)
        lab.log.wait("domain.soft_reset", since, name=guest)
        wait_until(lambda: actor_of(lab, guest), "another actor")
    if victim != "actor":
        lab.log.wait("domain.cloned", since, name=CONSOLE)
    time.sleep(APART_S)


def numbers(text: bytes, mark: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^" + mark + rb"(\d+)\r?$", text, re.MULTILINE)]


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_a_guest_writes_is_whole_in_the_file_and_for_a_watcher(lab, guest, victim, tmp_path):
    """The shell on the console writes, since two writers' lines would mix. The file has the guests before, too."""
    file = lab.run / "console" / "g.log"
    earlier = file.stat().st_size
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\n")
        wait_until(lambda: b"/ #" in (tmp_path / "seen").read_bytes(), "a shell")
        console.type(b"i=0; while [ ! -e /tmp/stop ]; do echo line $i; i=$((i+1)); done; echo the end\n")
        for _ in range(KILLS):
            kill(lab, guest, victim)
        lab.run_in(guest, "touch", "/tmp/stop")
        wait_until(lambda: b"\nthe end" in (tmp_path / "seen").read_bytes(), "the end")
        status, said = console.end()
    assert (status, said) == (0, "tv: input has ended\n")
    written = numbers(file.read_bytes()[earlier:], b"line ")
    assert written == list(range(len(written)))
    assert len(written) > 1000
    assert numbers((tmp_path / "seen").read_bytes(), b"line ") == written


@pytest.mark.parametrize("victim", VICTIMS)
def test_every_key_arrives_once_and_in_order(lab, guest, victim, tmp_path):
    typed = b"".join(b"%07d\n" % number for number in range(TYPED))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\n")
        wait_until(lambda: b"/ #" in (tmp_path / "seen").read_bytes(), "a shell")
        console.type(b"stty -echo; cat > /tmp/typed; echo the $((0)) end\n")
        step = len(typed) // KILLS
        for kill_number in range(KILLS):
            console.type(typed[kill_number * step : (kill_number + 1) * step])
            kill(lab, guest, victim)
        console.type(typed[KILLS * step :] + b"\x04")
        wait_until(lambda: b"the 0 end" in (tmp_path / "seen").read_bytes(), "the end of what was typed")
        assert console.end() == (0, "tv: input has ended\n")
    assert lab.run_in(guest, "cat", "/tmp/typed") == typed


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_second_watcher_sees_what_the_first_sees_and_the_writer_stays_the_writer(lab, guest, victim, tmp_path):
    with on_a_terminal(lab.run, guest) as first, on_a_terminal(lab.run, guest) as second:
        second.wait(b"somebody else has the keyboard")
        first.type(b"\r")
        first.wait(b"/ #")
        for number in range(5):
            kill(lab, guest, victim)
            first.type(b"echo round-$((100 + %d))\r" % number)
            first.wait(b"round-%d" % (100 + number))
            second.wait(b"round-%d" % (100 + number))
    assert b"keyboard" not in first.shown + second.shown


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_is_typed_at_a_paused_guest_arrives_whole_when_it_goes_on(lab, guest, victim, tmp_path):
    typed = b"".join(b"%07d\n" % number for number in range(TYPED))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\nstty -echo; cat > /tmp/typed; echo the $((0)) end\n")
        wait_until(lambda: b"cat > /tmp/typed" in (tmp_path / "seen").read_bytes(), "cat runs")
        lab.client.pause(guest)
        console.type(typed)
        for _ in range(5):
            kill(lab, guest, victim)
        lab.client.unpause(guest)
        console.type(b"\x04")
        wait_until(lambda: b"the 0 end" in (tmp_path / "seen").read_bytes(), "the end of what was typed")
        assert console.end() == (0, "tv: input has ended\n")
    assert lab.run_in(guest, "cat", "/tmp/typed") == typed
