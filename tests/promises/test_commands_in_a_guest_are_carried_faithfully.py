"""`tv exec`: bytes, exit status and signals as they are, commands kept apart, and a clear end when the guest dies."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel.abi.guest_io import ExecEnded
from tests.promises.events import wait_until
from tests.promises.lab import ROOT, start_lab
from triovisor.client import TvError
from triovisor.command import EXIT_UNKNOWN, BytesSource, exit_code, pump

EVERY_BYTE = bytes(range(256))
COPY = "cat > /tmp/in; cat /tmp/in; cat /tmp/in >&2"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run")) as started:
        yield started


@pytest.fixture(scope="module")
def guest(lab):
    lab.create("g")
    return "g"


def tv(lab, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command line, as a process."""
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), *words]
    return subprocess.run(command, input=given, capture_output=True, cwd=ROOT, timeout=60, check=False)


def test_every_byte_value_passes_input_output_and_errors_unchanged(lab, guest):
    given = EVERY_BYTE * 256
    result = lab.client.exec(guest, ["sh", "-c", COPY], given)
    assert (result.stdout, result.stderr, result.status) == (given, given, 0)


def test_every_byte_value_passes_the_command_line_tool_unchanged(lab, guest):
    done = tv(lab, "exec", guest, "--", "sh", "-c", COPY, given=EVERY_BYTE)
    assert (done.stdout, done.stderr, done.returncode) == (EVERY_BYTE, EVERY_BYTE, 0)


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_exit_status_is_the_commands(lab, guest, status):
    assert lab.client.exec(guest, ["sh", "-c", f"exit {status}"]).status == status
    assert tv(lab, "exec", guest, "--", "sh", "-c", f"exit {status}").returncode == status


def test_a_command_that_a_signal_ends_says_so(lab, guest):
    result = lab.client.exec(guest, ["sh", "-c", "kill -9 $$"])
    assert (result.status, result.signal) == (None, signal.SIGKILL)
    assert tv(lab, "exec", guest, "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_ends_as_a_shell_would_say(lab, guest):
    assert lab.client.exec(guest, ["no-such-command"]).status == 127


def test_eight_commands_at_once_are_kept_apart(lab, guest):
    def echo(number: int) -> tuple[bytes, bytes]:
        given = bytes([number]) * 100_000
        return given, lab.client.exec(guest, ["cat"], given).stdout

    with ThreadPoolExecutor(8) as pool:
        for given, got in pool.map(echo, range(8)):
            assert given == got


def test_a_reader_that_does_not_read_holds_up_no_other_command(lab, guest):
    with lab.client.command(guest, ["sh", "-c", "yes"]):
        assert lab.client.exec(guest, ["echo", "free"]).stdout == b"free\n"


def test_a_command_whose_administrator_leaves_is_killed(lab, guest):
    with lab.client.command(guest, ["sleep", "4242"]):
        wait_until(lambda: b"sleep 4242" in lab.run_in(guest, "ps"), "the command runs")
    wait_until(lambda: b"sleep 4242" not in lab.run_in(guest, "ps"), "the command is killed")


def test_administrators_that_leave_at_whatever_moment_harm_no_guest(lab, guest):
    for number in range(40):
        with lab.client.command(guest, ["sh", "-c", "echo some words; exit 3"]) as command:
            if number % 2:
                wait_until(command.take, "output or the end")
    assert lab.client.exec(guest, ["echo", "alive"]).stdout == b"alive\n"
    assert lab.client.info(guest).generation == 1


def test_a_command_whose_guest_is_destroyed_under_it_ends_with_a_clear_word(lab):
    lab.create("doomed")
    with lab.client.command("doomed", ["sleep", "1000"]) as command:
        wait_until(lambda: b"sleep" in lab.run_in("doomed", "ps"), "the command runs")
        ends: list[ExecEnded] = []
        waiting = threading.Thread(target=lambda: ends.append(pump(command, BytesSource(b""), lambda *_: None)))
        waiting.start()
        lab.client.destroy("doomed")
        waiting.join(20)
    (ended,) = ends
    assert (ended.status, ended.signal) == (None, None)
    assert ended.why == "guest doomed ended while the command ran"
    assert exit_code(ended) == EXIT_UNKNOWN


def test_the_command_line_tool_gives_125_when_the_guest_dies_under_the_command(lab):
    lab.create("doomed")
    command = [sys.executable, "-m", "triovisor.cli", "--run", str(lab.run), "exec", "doomed", "--", "sleep", "1000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as running:
        wait_until(lambda: b"sleep 1000" in lab.run_in("doomed", "ps"), "the command runs")
        os.kill(lab.client.info("doomed").pid, signal.SIGKILL)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == EXIT_UNKNOWN
    assert errors == b"tv: guest doomed ended while the command ran\n"


def test_a_command_in_a_guest_that_is_not_there_is_refused_in_one_line(lab):
    with pytest.raises(TvError, match="there is no domain 'nobody'"):
        lab.client.exec("nobody", ["true"])
    done = tv(lab, "exec", "nobody", "--", "true")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
