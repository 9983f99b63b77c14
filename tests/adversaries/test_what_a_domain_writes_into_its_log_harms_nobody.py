"""A domain writes into its log pipe whatever it likes: it lands in its own file, bounded, under its own name."""

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from kernel.abi import packet
from kernel.abi.codec import MAX_PACKET, Codec, encode
from kernel.abi.ids import DomId, Generation, Peer
from kernel.abi.keeping import TAIL_BYTES, KeepPipe, KeepTails, PipeKind, Tail, TailEnd, TailMessage
from kernel.keeping import BURST_BYTES, MAX_LINE_BYTES
from tests.adversaries.lab import Lab
from tests.adversaries.puppet import Puppet
from tests.not_possible import not_possible
from tests.promises.events import Event, EventLog, wait_until
from tests.promises.lab import ROOT
from tests.promises.processes import children_of

WRITE_S = 20.0

LAST_OF_BOOT = b"Press Enter for a shell"

last_words = itertools.count()
"""One puppet lives through many tests, and its log holds what it said in the one before."""


def write(pipe: int, data: bytes) -> None:
    """All of it, as the keeper makes room."""
    rest, end_s = memoryview(data), time.monotonic() + WRITE_S
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    while rest:
        assert poll.poll((end_s - time.monotonic()) * 1000), "the keeper reads no more"
        try:
            rest = rest[os.write(pipe, rest[:4096]) :]
        except BlockingIOError:
            continue


def log_of(lab: Lab, puppet: Puppet) -> EventLog:
    return EventLog(lab.run / "log" / f"{puppet.name}.{puppet.peer.generation}.jsonl")


def say(pipe: int, event: bytes) -> bool:
    """One honest event. False, for a `wait_until` to say it again."""
    write(pipe, b'\n{"event":"%s"}\n' % event)
    return False


def say_last(lab: Lab, puppet: Puppet) -> Event:
    """An honest event behind all others: when it is in the file, the keeper has taken what came before it."""
    number = next(last_words)
    write(puppet.log_pipe, b'\n{"event":"puppet.said_last","number":%d}\n' % number)
    return log_of(lab, puppet).wait("puppet.said_last", number=number)


def keeper_of(lab: Lab) -> int:
    return next(process.pid for process in children_of(lab.pid) if b"kernel.keeper" in _command(process.pid))


def _command(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def nested(depth: int) -> bytes:
    return b'{"event":"x","x":' + b"[" * depth + b"]" * depth + b"}"


LINES = {
    "noise": bytes(range(256)).replace(b"\n", b"") * 4,
    "no object": b"[1, 2]",
    "a number": b"1",
    "no event": b'{"x":1}',
    "an event that is no text": b'{"event":[1]}',
    "text that is no text": b'{"event":"\xff\xfe"}',
    "half a pair of surrogates": b'{"event":"\\ud800"}',
    "nested more deeply than can be written": nested(300),
    "nested as deeply as can be read": nested(1000),
    "nested without end": nested(30000),
    "a number without end": b'{"event":"x","x":' + b"9" * 60000 + b"}",
    "an exponent": b'{"event":1e999999}',
    "a key twice": b'{"domain":"dom0","domain":"dom0","domain":"dom0"}',
    "a key without end": b'{"' + b"x" * 60000 + b'":1}',
    "many keys": b"{" + b",".join(b'"%d":0' % n for n in range(6000)) + b"}",
    "NUL": b"\0" * 1000,
    "control characters": b"\x1b[2J\x1b]0;owned\x07",
    "an escape of the line": b'{"event":"x\\n{\\"domain\\":\\"dom0\\"}"}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_a_line_of_any_kind_is_kept_under_its_own_name(calm: Lab, line):
    keeper = keeper_of(calm)
    with calm.driver_puppet() as puppet:
        write(puppet.log_pipe, b"\n" + line + b"\n")
        say_last(calm, puppet)
        for raw in log_of(calm, puppet).path.read_bytes().splitlines():
            stamp = json.loads(raw)
            assert isinstance(stamp["event"], str)
            assert (stamp["domain"], stamp["domid"], stamp["generation"]) == (
                puppet.name,
                puppet.peer.domid,
                puppet.peer.generation,
            )
    assert keeper_of(calm) == keeper


def test_nobody_speaks_for_another(calm: Lab):
    with calm.driver_puppet() as puppet:
        forged = {"domain": "hypervisor", "domid": 0, "generation": 99, "event": "hypervisor.stopping", "ns": 0}
        write(puppet.log_pipe, b"\n" + orjson.dumps(forged) + b"\n")
        say_last(calm, puppet)
        (kept,) = log_of(calm, puppet).all("hypervisor.stopping")
        assert (kept["domain"], kept["domid"], kept["generation"]) == (
            puppet.name,
            puppet.peer.domid,
            puppet.peer.generation,
        )
    assert not calm.log.all("hypervisor.stopping")


def test_a_line_without_end_is_cut(calm: Lab):
    with calm.driver_puppet() as puppet:
        log = log_of(calm, puppet)
        since = log.mark()
        write(puppet.log_pipe, b"\n" + b"x" * (3 * MAX_LINE_BYTES))
        say_last(calm, puppet)
        assert log.all("log.unreadable", since)


@pytest.mark.parametrize("line", [b'{"event":"x"}\n', b"\xff\n", b"0\n"], ids=["events", "noise", "numbers"])
def test_a_flood_is_cut_and_counted_and_others_are_kept(calm: Lab, line):
    """The shortest lines are the dearest: each becomes an event of a hundred bytes."""
    since = calm.log.mark()
    with calm.driver_puppet() as puppet:
        log = log_of(calm, puppet)
        before = log.mark()
        flood = line * (2 * BURST_BYTES // len(line))
        write(puppet.log_pipe, flood)
        calm.create("passer-by")
        calm.client.destroy("passer-by")
        calm.log.wait("guest.ended", since, name="passer-by")
        wait_until(lambda: say(puppet.log_pipe, b"x") or log.all("log.gap", before), "the gap is counted")
        assert log.path.stat().st_size < 4 * BURST_BYTES
        puppet.send(b"\xc1")
        calm.wait_death(puppet)


def test_a_keeper_that_is_killed_is_followed_by_another_that_loses_nothing(calm: Lab):
    with calm.driver_puppet() as puppet:
        for number in range(3):
            since = calm.log.mark()
            before = keeper_of(calm)
            write(puppet.log_pipe, b'\n{"event":"puppet.before","number":%d}\n' % number)
            os.kill(before, signal.SIGSTOP)
            write(puppet.log_pipe, b'{"event":"puppet.meanwhile","number":%d}\n' % number)
            os.kill(before, signal.SIGKILL)
            write(puppet.log_pipe, b'{"event":"puppet.after","number":%d}\n' % number)
            for event in ("puppet.before", "puppet.meanwhile", "puppet.after"):
                log_of(calm, puppet).wait(event, number=number)
            calm.log.wait("keeper.died", since, how="killed by SIGKILL")
            calm.log.wait("keeper.started", since)
            assert keeper_of(calm) != before
            assert LAST_OF_BOOT in calm.client.dmesg("innocent")
            assert b'"pid":%d,' % keeper_of(calm) in calm.client.dmesg(), "its own keeper.started"


def test_domains_come_and_go_while_there_is_no_keeper(calm: Lab):
    keeper = keeper_of(calm)
    os.kill(keeper, signal.SIGSTOP)
    calm.create("came-unseen")
    calm.client.destroy("came-unseen")
    os.kill(keeper, signal.SIGKILL)
    calm.log.wait("guest.ended", name="came-unseen")
    EventLog(calm.run / "log" / "came-unseen.1.jsonl").wait("domain.entered")


@contextlib.contextmanager
def keeper_of_our_own(run: Path) -> Iterator[socket.socket]:
    """A log keeper; the control channel to it."""
    ours, theirs = packet.pair()
    command = [sys.executable, "-m", "kernel.keeper", str(theirs.fileno()), str(run)]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT) as process:
        theirs.close()
        try:
            yield ours
            ours.close()
            assert process.wait(WRITE_S) == 0
        finally:
            process.kill()


def test_a_dom0_that_takes_no_answer_does_not_stop_the_keeper(tmp_path):
    """It has asked for more than a socket holds; what others write is kept meanwhile, and the answer comes whole."""
    peer = Peer(DomId(7), Generation(1))
    console, consoles_end = os.pipe()
    log, logs_end = os.pipe()
    asking, keepers = packet.pair()
    with keeper_of_our_own(tmp_path) as control, asking, keepers:
        packet.send(control, encode([KeepPipe(peer, "g", PipeKind.CONSOLE)]), [console])
        packet.send(control, encode([KeepPipe(peer, "g", PipeKind.LOG)]), [log])
        packet.send(control, encode([KeepTails()]), [keepers.fileno()])
        for descriptor in (console, log):
            os.close(descriptor)
        text = os.urandom(TAIL_BYTES)
        write(consoles_end, text)
        wait_until(lambda: (tmp_path / "console" / "g.log").stat().st_size == TAIL_BYTES, "the console is kept")
        for _ in range(3):
            packet.send(asking, encode([Tail("g")]))
        write(logs_end, b'{"event":"kept"}\n')
        EventLog(tmp_path / "log" / "g.1.jsonl").wait("kept")
        assert take_tail(asking) == text
        for descriptor in (consoles_end, logs_end):
            os.close(descriptor)


def take_tail(asking: socket.socket) -> bytes:
    tail = b""
    codec = Codec(TailMessage)
    asking.setblocking(True)
    asking.settimeout(WRITE_S)
    while True:
        for message in codec.decode(asking.recv(MAX_PACKET)):
            if isinstance(message, TailEnd):
                return tail
            tail += message.data


def test_a_keeper_whose_disk_is_full_goes_on_and_counts_what_it_lost(tmp_path):
    """A file system of half a megabyte, filled by one domain; another is kept again once there is room."""
    if os.geteuid() != 0:
        not_possible("mounting a small file system needs root")
    run = tmp_path / "small"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", run], check=True)
    try:
        _fill_and_free(run)
    finally:
        subprocess.run(["umount", "-l", run], check=True)


def _fill_and_free(run: Path) -> None:
    peers = [Peer(DomId(domid), Generation(1)) for domid in (7, 8)]
    pipes = [os.pipe() for _ in peers]
    with keeper_of_our_own(run) as control:
        for peer, (reading, _) in zip(peers, pipes, strict=True):
            packet.send(control, encode([KeepPipe(peer, f"g{peer.domid}", PipeKind.LOG)]), [reading])
            os.close(reading)
        first, second = (writing for _, writing in pipes)
        write(first, b'{"event":"filler","text":"%s"}\n' % (b"x" * 1000) * 1000)
        write(second, b'{"event":"lost"}\n' * 10000)
        late = Peer(DomId(9), Generation(1))
        reading, writing = os.pipe()
        packet.send(control, encode([KeepPipe(late, "g9", PipeKind.LOG)]), [reading])
        write(writing, b'{"event":"x"}\n' * 10000)
        os.truncate(run / "log" / "g7.1.jsonl", 0)
        log = EventLog(run / "log" / "g8.1.jsonl")
        wait_until(lambda: say(second, b"kept") or log.all("kept"), "events are kept again")
        assert log.all("log.gap")
        for descriptor in (first, second, reading, writing):
            os.close(descriptor)
