"""`tv` as a process, against a real Dom0 service."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import trio

from kernel.abi import domctl as d
from kernel.abi.guest_config import DomainState, ShutdownReason
from kernel.abi.status import Refused, Status
from tests.domains.dom0.asking import until
from tests.domains.dom0.fake_hypervisor import domain_info
from triovisor.render import state_slots, visible

TV = [sys.executable, "-m", "triovisor.cli"]


@pytest.fixture
def environment(hypervisor):
    return {**os.environ, "TRIOVISOR_RUN": str(hypervisor.run)}


@pytest.fixture
def tv(environment):
    async def tv(*words: str, stdin: bytes = b"", status: int = 0) -> subprocess.CompletedProcess:
        with trio.fail_after(60):
            done = await trio.run_process(
                [*TV, *words], stdin=stdin, env=environment, capture_stdout=True, capture_stderr=True, check=False
            )
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr
        return done

    return tv


async def test_list_has_the_columns_of_xl_list(hypervisor, tv):
    hypervisor.add_guest(state=DomainState.PAUSED)
    lines = (await tv("list")).stdout.decode().splitlines()
    assert lines[0].split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
    assert lines[1].split() == ["dom0", "0", "64", "1", "r-----", "1.2"]
    assert lines[3].split() == ["web", "2", "64", "1", "--p---", "1.2"]


async def test_list_gives_scripts_all_it_knows(hypervisor, tv):
    hypervisor.add_guest()
    listed = json.loads((await tv("list", "--json")).stdout)
    assert [domain["name"] for domain in listed] == ["dom0", "blkback", "web"]
    assert listed[2]["vbds"][0]["vdev"] == "vda"


@pytest.mark.parametrize("state", list(DomainState))
def test_every_state_has_its_slots(state):
    slots = state_slots(state)
    assert len(slots) == 6
    assert all(slot in ("-", letter) for slot, letter in zip(slots, "rbpscd", strict=True))


async def test_info_prints_a_key_and_a_value_a_line(hypervisor, tv):
    hypervisor.add_guest()
    assert (await tv("info")).stdout == b"host                   : test\nnr_cpus                : 2\n"
    about = (await tv("info", "web")).stdout.decode()
    assert "memory_mib             : 64\n" in about
    assert "/images/a.img" in about
    assert json.loads((await tv("info", "web", "--json")).stdout)["name"] == "web"


async def test_create_reads_toml_and_says_the_domid(hypervisor, tv, tmp_path):
    (tmp_path / "db.toml").write_text('name = "db"\nmemory = 32\n')
    assert (await tv("create", str(tmp_path / "db.toml"))).stdout == b"created db, domid 2\n"
    (tmp_path / "db2.toml").write_text('name = "db2"\n')
    made = await tv("create", str(tmp_path / "db2.toml"), "--json")
    assert json.loads(made.stdout) == {"name": "db2", "domid": 3}


async def test_a_mistake_in_toml_is_one_line_and_status_1(hypervisor, tv, tmp_path):
    (tmp_path / "db.toml").write_text('name = "db"\nmemory = 8\n')
    done = await tv("create", str(tmp_path / "db.toml"), status=1)
    assert done.stderr.decode() == f"tv: {tmp_path}/db.toml: memory = 8: a guest needs at least 24 (MiB)\n"
    assert not any(isinstance(call, d.DomctlCreate) for call in hypervisor.calls)


async def test_a_refusal_is_one_line_and_status_1(hypervisor, tv):
    hypervisor.add_guest()
    hypervisor.refusals[d.DomctlDestroy] = Refused(Status.EPERM, "web: not now: try later")
    done = await tv("destroy", "web", status=1)
    assert (done.stdout, done.stderr) == (b"", b"tv: web: not now: try later\n")


@pytest.mark.parametrize("words", [("bogus",), ("list", "--bogus"), ("exec",), ("shutdown",), ("driver", "fault", "x")])
async def test_wrong_usage_is_status_2(tv, words):
    assert (await tv(*words, status=2)).stderr


async def test_without_a_hypervisor_tv_says_how_to_start_one(tv, tmp_path):
    done = await tv("--run", str(tmp_path / "none"), "list", status=1)
    assert done.stderr.decode() == (
        f"tv: no hypervisor at {tmp_path}/none/admin.sock: start one with: python -m kernel\n"
    )


async def test_shutdown_asks_for_what_it_was_told(hypervisor, tv):
    hypervisor.add_guest()
    await tv("reboot", "web")
    assert hypervisor.calls[-1].reason is ShutdownReason.REBOOT
    done = await tv("shutdown", "web", "--wait", "--timeout", "0.2", status=1)
    assert done.stderr.startswith(b"tv: guest web has not powered off within 0.2 s")


async def test_exec_passes_bytes_and_status_through(hypervisor, tv):
    hypervisor.add_guest()
    done = await tv("exec", "web", "--", "both", status=3)
    assert done.stdout == bytes(range(256))
    assert done.stderr == bytes(reversed(range(256)))
    data = bytes(range(256)) * 4096
    assert (await tv("exec", "web", "--", "cat", stdin=data)).stdout == data


async def test_exec_leaves_the_words_of_the_command_alone(hypervisor, tv):
    hypervisor.add_guest()
    assert (await tv("exec", "web", "--", "echo", "--json", "--", "-n")).stdout == b"--json -- -n"
    assert (await tv("exec", "web", "echo", "-l", "--run", "x")).stdout == b"-l --run x"
    assert (await tv("exec", "-n", "web", "--", "cat", stdin=b"unread")).stdout == b""


async def test_exec_reads_a_file_and_lives_without_any_input(hypervisor, environment, tmp_path):
    hypervisor.add_guest()
    (tmp_path / "input").write_bytes(b"from a file" * 10_000)
    for redirection, wanted in ((f"<{tmp_path}/input", b"from a file" * 10_000), ("<&-", b""), ("<&- 2>&-", b"")):
        line = f"exec {' '.join(TV)} exec web -- cat {redirection}"
        with trio.fail_after(30):
            done = await trio.run_process(["sh", "-c", line], env=environment, capture_stdout=True)
        assert done.stdout == wanted


async def test_exec_says_so_when_the_guest_ends_under_the_command(hypervisor, environment):
    guest = hypervisor.add_guest()
    async with trio.open_nursery() as nursery:
        process = await _start(nursery, environment, "exec", "web", "--", "sleep")
        assert await process.stdout.receive_some(6) == b"asleep"
        await guest.die()
        assert await process.wait() == 125
        assert await process.stderr.receive_some() == b"tv: guest web ended while the command ran\n"


async def test_ctrl_c_goes_to_the_command(hypervisor, environment):
    hypervisor.add_guest()
    async with trio.open_nursery() as nursery:
        process = await _start(nursery, environment, "exec", "web", "--", "signalled")
        assert await process.stdout.receive_some(7) == b"waiting"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 128 + signal.SIGINT


async def test_a_second_ctrl_c_ends_tv_and_kills_the_command(hypervisor, environment):
    guest = hypervisor.add_guest()
    async with trio.open_nursery() as nursery:
        process = await _start(nursery, environment, "exec", "web", "--", "sleep")
        assert await process.stdout.receive_some(6) == b"asleep"
        process.send_signal(signal.SIGINT)
        await trio.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert await process.stderr.receive_some() == b""
        await until(lambda: guest.killed)


async def test_ctrl_c_while_tv_waits_is_clean(hypervisor, environment):
    hypervisor.add_guest()
    async with trio.open_nursery() as nursery:
        process = await _start(nursery, environment, "shutdown", "web", "--wait")
        await until(lambda: any(isinstance(call, d.DomctlShutdown) for call in hypervisor.calls))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert await process.stderr.receive_some() == b""


async def test_a_reader_that_goes_away_ends_tv_without_a_word(hypervisor, environment):
    hypervisor.add_guest()
    async with trio.open_nursery() as nursery:
        process = await _start(nursery, environment, "exec", "web", "--", "flood", "500")
        await process.stdout.receive_some(10)
        await process.stdout.aclose()
        assert await process.wait() == 128 + signal.SIGPIPE
        assert await process.stderr.receive_some() == b""


async def test_dmesg_is_binary(hypervisor, tv):
    hypervisor.tails["web"] = bytes(range(256)) * 500
    assert (await tv("dmesg", "web")).stdout == hypervisor.tails["web"]


async def test_drivers_are_listed_and_made_to_fail(hypervisor, tv):
    head, row = (await tv("driver", "list")).stdout.decode().splitlines()
    assert head.split()[:6] == ["Name", "ID", "State", "Gen", "PID", "Standby"]
    assert row.split() == ["blkback", "1", "running", "3", "4001", "4002", "full", "2", "1", "SIGKILL"]
    assert json.loads((await tv("driver", "list", "--json")).stdout)[0]["standby_pid"] == 4002
    await tv("driver", "fault", "blkback", "hang", "--count", "2")
    assert (hypervisor.calls[-1].what, hypervisor.calls[-1].count) == ("hang", 2)


async def test_many_at_once_are_all_served(hypervisor, tv):
    for number in range(5):
        hypervisor.domains[f"idle{number}"] = domain_info(100 + number, f"idle{number}")
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(tv, "list")


class Running:
    """A `tv` that the test talks to while it runs."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout
        assert process.stderr
        self.stdout = process.stdout
        self.stderr = process.stderr
        self.wait = process.wait
        self.send_signal = process.send_signal


async def _start(nursery: trio.Nursery, environment: dict[str, str], *words: str) -> Running:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    start = partial(trio.run_process, [*TV, *words], env=environment, check=False, **pipes)
    with trio.fail_after(60):
        return Running(await nursery.start(start))


async def test_pause_unpause_and_a_drivers_restart_ask_for_it_and_print_nothing(hypervisor, tv):
    guest = hypervisor.add_guest()
    for words, wanted in (
        (("pause", "web"), d.DomctlPause),
        (("unpause", "web"), d.DomctlUnpause),
        (("driver", "restart", "blkback"), d.SysctlRestart),
    ):
        done = await tv(*words)
        assert (done.stdout, done.stderr) == (b"", b"")
        assert isinstance(hypervisor.calls[-1], wanted)
    assert hypervisor.calls[-1].driver == "blkback"
    assert [call.domid for call in hypervisor.calls if isinstance(call, d.DomctlPause)] == [guest.info.domid]
    assert (await tv("pause", "nobody", status=1)).stderr.startswith(b"tv: there is no domain 'nobody'")


async def test_info_says_for_whom_a_guest_stands_still(hypervisor, tv):
    hypervisor.add_guest(state=DomainState.PAUSED, paused_for=["dom0", "blkback"])
    about = (await tv("info", "web")).stdout.decode()
    assert "state                  : paused\npaused_for             : dom0, blkback\n" in about


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\r\n\ttext\n", "plain\n\ttext\n"),
        (b"\x1b[2J\x07", "^[[2J^G"),
        (b"good\rbad", "good^Mbad"),
        (b"\x7f\x00", "^?^@"),
        (b"\xc2\x9b31m", "\\x9b31m"),
        (b"\x9b\xff", "\\x9b\\xff"),
        ("\u202etxt".encode(), "\\u202etxt"),
        ("für – 漢".encode(), "für – 漢"),
    ],
)
def test_what_a_guest_wrote_is_shown_without_steering_a_terminal(written, shown):
    assert visible(written) == shown
