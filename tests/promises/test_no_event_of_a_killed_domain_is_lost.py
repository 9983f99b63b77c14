"""Logs: whatever a domain said before it was killed is in its own file, and nobody can write into another's."""

import os
import signal
from pathlib import Path

import orjson
import pytest

from tests.promises.events import EventLog, wait_until
from tests.promises.lab import start_lab, tree_with

SPEAKER = "speaker"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    tree = tree_with(tmp_path_factory.mktemp("tree"), "speaker", "speaker")
    with start_lab(tmp_path_factory.mktemp("run"), tree=tree, name=SPEAKER, role="drivers.speaker.speaker") as started:
        yield started


def said(pid: int) -> int:
    """The last number that the speaker is known to have logged."""
    name = Path(f"/proc/{pid}/comm").read_text().split()
    return int(name[1]) if name[0] == "said" else 0


def numbers(log: EventLog) -> list[int]:
    return [int(event["what"]) for event in log.all("upcall.ignored")]


def kill_while_it_speaks(lab) -> tuple[EventLog, int]:
    """The dead incarnation's log, and the last number that it is known to have logged."""
    peer = lab.watch.wait_serving()
    pid = lab.watch.pid_of(peer)
    wait_until(lambda: said(pid) > 50, "the driver speaks")
    os.kill(pid, signal.SIGSTOP)
    last = said(pid)
    os.kill(pid, signal.SIGKILL)
    lab.watch.wait_death(peer)
    return lab.log_of(peer, SPEAKER), last


def test_every_event_up_to_a_kill_is_in_the_dead_domains_file(lab):
    for _ in range(10):
        log, last = kill_while_it_speaks(lab)
        found = wait_until_kept(log, last)
        assert found == list(range(1, len(found) + 1))
        assert len(found) - last in (0, 1), "what was stopped between the log and its name may have said one more"


def wait_until_kept(log: EventLog, last: int) -> list[int]:
    wait_until(lambda: numbers(log)[-1:] >= [last], f"number {last} in {log.path}")
    return numbers(log)


def test_each_incarnation_has_a_file_of_its_own_and_every_line_says_whose_it_is(lab):
    lab.watch.kill()
    for path in (lab.run / "log").glob("*.jsonl"):
        name, generation, _ = path.name.rsplit(".", 2)
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        assert lines
        assert {(line["domain"], line["generation"]) for line in lines} == {(name, int(generation))}


def test_a_domain_that_claims_to_be_another_is_heard_as_itself(lab):
    peer = lab.watch.wait_serving()
    lie = lab.log_of(peer, SPEAKER).wait("log.unreadable", text="a lie")
    domid, generation = map(int, peer.split("."))
    assert (lie["domain"], lie["domid"], lie["generation"]) == (SPEAKER, domid, generation)
    dom0s = (lab.run / "log" / "dom0.1.jsonl").read_bytes()
    assert b"a lie" not in dom0s


def test_what_is_no_event_is_kept_as_unreadable(lab):
    lab.log_of(lab.watch.wait_serving(), SPEAKER).wait("log.unreadable", text="no event at all")


def test_a_guests_console_is_kept_in_a_file_and_its_tail_can_be_asked_for(lab):
    lab.create("g")
    lab.run_in("g", "sh", "-c", "echo words on the console > /dev/console")
    file = lab.run / "console" / "g.log"
    wait_until(lambda: b"Press Enter for a shell on this console." in file.read_bytes(), "what it said as it booted")
    wait_until(lambda: b"words on the console" in file.read_bytes(), "the console's words in its file")
    wait_until(lambda: b"words on the console" in lab.client.dmesg("g"), "the console's words in its tail")
    lab.client.destroy("g")
    assert b"words on the console" in file.read_bytes()
