"""The management console of a real kernel, and of what only pretends to be one."""

import contextlib
import os
import socket
import struct
from pathlib import Path

import pytest
import trio

from domains.guests.mconsole import Mconsole, Said, pack_request, unpack_reply
from domains.guests.standing import ProcessLook, Standing, stood_still
from kernel.abi.status import DomainFault, Refused, Status


def test_a_request_has_the_bytes_that_user_mode_linux_reads():
    assert pack_request("stop") == bytes.fromhex("bebafeca 02000000 04000000") + b"stop" + bytes(508)


def test_a_reply_is_read_up_to_its_closing_nul():
    assert unpack_reply(struct.pack("<III8s", 0, 0, 8, b"stopped\0")) == Said(0, "stopped")
    assert unpack_reply(struct.pack("<III1s", 1, 0, 1, b"\0")) == Said(1, "")


@pytest.mark.parametrize(
    "reply",
    [b"", bytes(11), struct.pack("<III", 0, 0, 0), struct.pack("<III", 0, 0, 2) + b"x", struct.pack("<III", 0, 0, 513)],
)
def test_what_is_no_reply_is_a_fault_of_the_guest(reply):
    with pytest.raises(DomainFault):
        unpack_reply(reply)


@contextlib.contextmanager
def pretender(folder):
    """A socket where a kernel would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "mconsole"))
        sock.setblocking(False)
        yield sock


def mconsole_in(folder) -> Mconsole:
    return Mconsole(str(folder / "mconsole"), str(folder / "own."))


async def test_a_kernel_that_comes_late_is_waited_for(tmp_path, nursery, autojump_clock):
    async def answer():
        await trio.sleep(1)
        with pretender(tmp_path) as kernel:
            while True:
                with contextlib.suppress(BlockingIOError):
                    _, asker = kernel.recvfrom(1024)
                    return kernel.sendto(struct.pack("<III3s", 0, 0, 3, b"ok\0"), asker)
                await trio.sleep(0.01)

    nursery.start_soon(answer)
    with trio.fail_after(10):
        assert await mconsole_in(tmp_path).ask("version") == Said(0, "ok")
    assert [path.name for path in tmp_path.iterdir()] == ["mconsole"]


async def test_a_silent_kernel_is_told_to_go_on_and_refused_at_the_deadline(tmp_path, autojump_clock):
    with pretender(tmp_path) as kernel:
        with trio.fail_after(10), pytest.raises(Refused) as refused:
            await Standing(mconsole_in(tmp_path)).pause()
        assert refused.value.status is Status.ETIMEDOUT
        heard = [kernel.recv(1024) for _ in range(3)]
    assert heard == [pack_request("stop"), pack_request("stop"), pack_request("go")]
    assert [path.name for path in tmp_path.iterdir()] == ["mconsole"]


async def test_a_kernel_that_says_something_else_is_not_believed(tmp_path, nursery):
    with pretender(tmp_path) as kernel:

        async def answer():
            await trio.lowlevel.wait_readable(kernel)
            _, asker = kernel.recvfrom(1024)
            kernel.sendto(struct.pack("<III8s", 1, 0, 8, b"refused\0"), asker)

        nursery.start_soon(answer)
        with trio.fail_after(10), pytest.raises(Refused) as refused:
            await Standing(mconsole_in(tmp_path)).pause()
        assert (refused.value.status, "'refused'" in refused.value.why) == (Status.EIO, True)


def test_processes_stand_still_when_none_has_run_or_waits_for_a_cpu():
    asleep = {5: ProcessLook("S", 1, 10), 6: ProcessLook("t", 5, 3)}
    assert stood_still(asleep, dict(asleep))
    assert not stood_still(asleep, {**asleep, 6: ProcessLook("t", 5, 4)})
    assert not stood_still(asleep, {**asleep, 6: ProcessLook("R", 5, 3)})
    assert not stood_still({**asleep, 5: ProcessLook("R", 1, 10)}, asleep)
    assert not stood_still(asleep, {**asleep, 7: ProcessLook("S", 5, 0)})


SETTLE_S = 0.05
"""The kernel says `stopped` on its way into the wait, and the tick in which it does is charged a moment later."""


def ticks_of(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


async def test_a_real_kernel_stands_still_goes_on_and_minds_no_order_said_twice(guest, tmp_path):
    mconsole = Mconsole(str(tmp_path / "guest" / "mconsole"), str(tmp_path / "own."))
    guest.link.start([b"sh", b"-c", b"while :; do :; done"])
    for _ in range(3):
        assert await mconsole.ask("stop") == Said(0, "stopped")
        assert await mconsole.ask("stop") == Said(1, "Already stopped")
        await trio.sleep(SETTLE_S)
        before = ticks_of(guest.process.pid)
        with trio.move_on_after(0.3) as waited:
            await guest.run("true")
        assert waited.cancelled_caught
        assert ticks_of(guest.process.pid) == before
        assert await mconsole.ask("go") == Said(0, "")
        assert await mconsole.ask("go") == Said(1, "Not stopped")
        assert (await guest.run("echo", "on"))[0] == b"on\n"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("own.")]
