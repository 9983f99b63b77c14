"""`tv console` on a terminal and between pipes: raw and restored, resized, shared, detached, clear about its end."""

import os
import signal
import subprocess
import termios
import time

import pytest

from domains.guests.commands import LOOK_S
from tests.promises.console_ends import TV, on_a_terminal, piped
from tests.promises.events import wait_until
from tests.promises.lab import start_lab
from triovisor.console import End

CTRL_BRACKET = b"\x1d"


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


def shell(screen) -> None:
    screen.type(b"\r")
    screen.wait(b"/ #")


def test_what_is_typed_reaches_a_shell_and_its_answer_comes_back(lab, guest):
    with on_a_terminal(lab.run, guest) as screen:
        screen.wait(b"Press Enter for a shell on this console.")
        shell(screen)
        screen.type(b"echo h$((0))i\r")
        screen.wait(b"h0i")
        screen.type(b"echo re$((0))ady; cat\r")
        screen.wait(b"re0ady")
        screen.type(b"twice\r")
        screen.wait(b"twice\r\ntwice")
        screen.type(b"\x03")
        screen.wait(b"/ #")
        screen.type(b"echo ended with $?\r")
        screen.wait(b"ended with 130")


def test_ctrl_bracket_detaches_and_the_scroll_back_comes_first_the_next_time(lab, guest):
    with on_a_terminal(lab.run, guest) as screen:
        shell(screen)
        screen.type(b"echo be$((0))fore\r")
        screen.wait(b"be0fore")
        before = screen.is_raw()
        screen.type(b"echo typed ah$((0))ead\r" + CTRL_BRACKET + b"never typed")
        assert screen.end() == End.DETACHED
        assert b"tv: detached" in screen.shown
        assert (before, screen.is_raw()) == (True, False)
    with on_a_terminal(lab.run, guest) as screen:
        screen.wait(b"be0fore")
        screen.wait(b"typed ah0ead")
    assert b"never typed" not in (lab.run / "console" / "g.log").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_before_after_a_signal(lab, guest, number):
    with on_a_terminal(lab.run, guest) as screen:
        screen.wait(b"Press Enter")
        screen.process.send_signal(number)
        assert screen.process.wait(20) == 128 + number
        assert screen.local_modes() & (termios.ECHO | termios.ICANON | termios.ISIG)
        assert not screen.is_raw()


def test_the_guest_has_the_windows_size_and_hears_when_it_changes(lab, guest):
    with on_a_terminal(lab.run, guest, rows=33, columns=101) as screen:
        shell(screen)
        screen.type(b"stty size\r")
        screen.wait(b"33 101")
        screen.type(b"sh -c 'trap \"echo wi$((0))nch\" WINCH; echo re$((0))ady; while sleep 0.1; do true; done'\r")
        screen.wait(b"re0ady")
        screen.resize(44, 132)
        wait_until(lambda: b"44 132" in lab.run_in(guest, "stty", "-F", "/dev/tty0", "size"), "the size in the guest")
        screen.wait(b"wi0nch")


def test_one_types_and_others_watch_until_they_take_over(lab, guest):
    with on_a_terminal(lab.run, guest) as first:
        shell(first)
        with on_a_terminal(lab.run, guest) as second:
            second.wait(b"somebody else has the keyboard, you are watching: --steal takes it")
            second.type(b"echo not ty$((0))ped\r")
            first.type(b"echo se$((0))en\r")
            first.wait(b"se0en")
            second.wait(b"se0en")
            with on_a_terminal(lab.run, guest, "--steal") as third:
                first.wait(b"the keyboard was taken from you")
                third.type(b"echo st$((0))olen\r")
                for screen in (first, second, third):
                    screen.wait(b"st0olen")
                third.type(CTRL_BRACKET)
                assert third.end() == End.DETACHED
            first.wait(b"you have the keyboard now")
            first.type(b"echo ag$((0))ain\r" + CTRL_BRACKET)
            assert first.end() == End.DETACHED
            second.wait_all(b"ag0ain", b"you have the keyboard now")
            second.type(b"echo m$((0))ine\r")
            second.wait(b"m0ine")
    assert b"not ty0ped" not in (lab.run / "console" / "g.log").read_bytes()


def test_who_only_watches_never_gets_the_keyboard(lab, guest):
    with on_a_terminal(lab.run, guest, "--watch") as watching:
        watching.wait(b"you are watching")
        with on_a_terminal(lab.run, guest) as typing:
            shell(typing)
            watching.wait(b"/ #")


def test_a_paste_of_64_kib_arrives_whole_and_the_console_goes_on(lab, guest, tmp_path):
    text = b"".join(b"%015d\n" % number for number in range(4096))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\ncat > /tmp/pasted\n" + text + b"\x04echo and $((0)) on\n")
        assert console.end() == (End.DETACHED, "tv: input has ended\n")
    assert lab.run_in(guest, "cat", "/tmp/pasted") == text
    assert b"and 0 on" in (tmp_path / "seen").read_bytes()


def test_what_is_pasted_while_a_guest_is_paused_arrives_whole_when_it_goes_on(lab, guest, tmp_path):
    """For longer than the agent is waited for: that it does not answer must not be taken for leave to type on."""
    text = b"".join(b"%015d\n" % number for number in range(2048))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\ncat > /tmp/pasted; echo the $((0)) end\n")
        wait_until(lambda: b"cat" in (tmp_path / "seen").read_bytes(), "cat runs")
        lab.client.pause(guest)
        console.type(text)
        time.sleep(LOOK_S + 2)
        lab.client.unpause(guest)
        console.type(b"\x04")
        wait_until(lambda: b"the 0 end" in (tmp_path / "seen").read_bytes(), "the end")
        assert console.end() == (End.DETACHED, "tv: input has ended\n")
    assert lab.run_in(guest, "cat", "/tmp/pasted") == text


def test_a_window_that_changes_while_a_guest_is_paused_has_its_last_size_when_it_goes_on(lab, guest):
    with on_a_terminal(lab.run, guest, rows=33, columns=101) as screen:
        shell(screen)
        lab.client.pause(guest)
        for rows in (40, 41, 42):
            screen.resize(rows, 132)
            time.sleep(LOOK_S / 2)
        lab.client.unpause(guest)
        wait_until(lambda: b"42 132" in lab.run_in(guest, "stty", "-F", "/dev/tty0", "size"), "the size in the guest")


def test_a_guest_that_does_not_read_holds_up_its_writer_alone_and_loses_no_key(lab, guest, tmp_path):
    """256 KiB are more than all that is on the way can hold."""
    text = b"".join(b"%015d\n" % number for number in range(16384))
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\nstty -echo; while [ ! -e /tmp/go ]; do sleep 0.1; done; cat > /tmp/typed\n")
        assert console.process.stdin is not None
        os.set_blocking(console.process.stdin.fileno(), False)
        sent, quiet_since = 0, time.monotonic()
        while time.monotonic() - quiet_since < 1:
            try:
                sent += os.write(console.process.stdin.fileno(), text[sent : sent + 4096])
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.02)
        assert sent < len(text), "back-pressure"
        assert lab.run_in(guest, "echo", "alive") == b"alive\n"
        with on_a_terminal(lab.run, guest) as other:
            other.wait(b"somebody else has the keyboard")
        lab.run_in(guest, "touch", "/tmp/go")
        os.set_blocking(console.process.stdin.fileno(), True)
        console.type(text[sent:] + b"\x04")
        assert console.end() == (End.DETACHED, "tv: input has ended\n")
    wait_until(lambda: lab.run_in(guest, "cat", "/tmp/typed") == text, "every key")


def test_input_that_the_guest_never_reads_is_told_as_such(lab, guest, tmp_path):
    with piped(lab.run, guest, tmp_path / "seen") as console:
        console.type(b"\nsleep 1000\n" + b"x\n" * 4000)
        status, said = console.end()
    assert status == End.UNREAD
    assert "guest g has not read the last" in said


def ask(lab, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*TV, "--run", str(lab.run), "console", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_guest_that_is_not_there_is_refused_in_one_line(lab, guest):
    assert ask(lab, "h") == (End.REFUSED, "tv: there is no domain 'h': tv list shows all\n")
    assert ask(lab, "blkback")[0] == End.REFUSED
    assert ask(lab, "../x")[0] == End.REFUSED


def test_a_guest_that_has_crashed_is_told_as_such(lab):
    lab.create("dead", on_crash="preserve", on_poweroff="preserve")
    lab.run_in("dead", "true")
    lab.client.shutdown("dead", wait_s=20)
    status, said = ask(lab, "dead")
    lab.destroy_all()
    assert status == End.NOT_RUNNING
    assert said.startswith("tv: guest dead is shutdown")
    assert said.count("\n") == 1


@pytest.mark.parametrize("how", ["poweroff", "kill", "reboot"])
def test_a_guest_that_ends_meanwhile_says_its_last_words(lab, guest, how):
    with on_a_terminal(lab.run, guest) as screen:
        screen.wait(b"Press Enter")
        if how == "kill":
            os.kill(lab.client.info(guest).pid, signal.SIGKILL)
        else:
            lab.client.shutdown(guest, reboot=how == "reboot")
            screen.wait(b"reboot: System halted" if how == "poweroff" else b"reboot: Restarting system")
        assert screen.end() == End.GUEST_ENDED
        assert b"tv: guest g has ended" in screen.shown
        assert not screen.is_raw()


def test_dom0_may_die_under_an_open_console(lab, guest):
    with on_a_terminal(lab.run, guest) as screen:
        shell(screen)
        since = lab.log.mark()
        os.kill(lab.client.info("dom0").pid, signal.SIGKILL)
        lab.log.wait("domain.started", since, name="dom0")
        screen.type(b"echo st$((0))ill\r")
        screen.wait(b"st0ill")
    assert b"tv:" not in screen.shown


def test_a_hypervisor_that_is_gone_ends_the_console(tmp_path):
    with start_lab(tmp_path, console=True) as lab:
        lab.create("g")
        with on_a_terminal(lab.run, "g") as screen:
            screen.wait(b"Press Enter")
            lab.hypervisor.process.kill()
            lab.hypervisor.process.wait()
            assert screen.end() == End.LOST
            assert b"tv: the hypervisor has ended" in screen.shown
            assert not screen.is_raw()


def test_without_a_console_driver_it_is_refused_in_one_line(tmp_path):
    with start_lab(tmp_path) as lab:
        lab.create("g")
        status, said = ask(lab, "g")
        lab.destroy_all()
    assert (status, said.count("\n")) == (End.REFUSED, 1)
    assert 'device = "console"' in said


def test_what_a_guest_wrote_does_not_steer_the_terminal_of_who_reads_it(lab, guest):
    lab.run_in(guest, "sh", "-c", "printf 'red \\033[31m' > /dev/console")
    wait_until(lambda: b"red \x1b[31m" in lab.client.dmesg(guest), "the words in the tail")
    command = [*TV, "--run", str(lab.run), "dmesg", guest]
    assert b"red \x1b[31m" in subprocess.run(command, capture_output=True, check=True).stdout
    assert b"red ^[[31m" in shown_by(command)
    assert b"red \x1b[31m" in shown_by([*command, "--raw"])


def shown_by(command: list[str]) -> bytes:
    """What a command shows on a terminal."""
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdout=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            shown += data
        assert process.wait() == 0
    os.close(ours)
    return shown
