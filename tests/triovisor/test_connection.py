"""Which hypervisor a client means, and what it says where there is none."""

import socket

import pytest
import trio

from kernel.abi.status import Status
from tests.domains.dom0.asking import ask
from tests.domains.dom0.fake_hypervisor import running_dom0
from triovisor.client import Client, TvError
from triovisor.connection import find_socket


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIOVISOR_RUN", raising=False)
    monkeypatch.delenv("TRIOVISOR_RUNS", raising=False)
    return tmp_path


def test_the_run_given_goes_before_the_environment_and_that_before_the_latest(elsewhere, monkeypatch):
    assert find_socket() == elsewhere / "runs/latest/admin.sock"
    monkeypatch.setenv("TRIOVISOR_RUNS", "/srv/runs")
    assert str(find_socket()) == "/srv/runs/latest/admin.sock"
    monkeypatch.setenv("TRIOVISOR_RUN", "/srv/one")
    assert str(find_socket()) == "/srv/one/admin.sock"
    assert str(find_socket("/tmp/two")) == "/tmp/two/admin.sock"


def test_the_socket_itself_may_be_given(elsewhere):
    assert find_socket("/srv/one/admin.sock").parent.name == "one"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind("other")
        assert find_socket("other") == elsewhere / "other"


def test_without_a_hypervisor_the_line_says_what_was_tried_and_how_to_start_one(elsewhere):
    with pytest.raises(TvError) as caught:
        Client().list()
    assert caught.value.why == f"no hypervisor at {elsewhere}/runs/latest/admin.sock: start one with: python -m kernel"


def test_a_socket_that_nobody_listens_on_is_no_hypervisor(elsewhere):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind("admin.sock")
    with pytest.raises(TvError, match="start one with: python -m kernel"):
        Client(elsewhere).list()


async def test_a_run_folder_with_a_path_too_long_for_a_socket_is_reached(elsewhere):
    run = elsewhere / ("long" * 30) / ("longer" * 20)
    run.mkdir(parents=True)
    async with running_dom0(run) as hypervisor:
        hypervisor.add_guest()
        assert (await ask(Client(run).info, "web")).name == "web"
        assert (await ask(Client(run).exec, "web", ["echo", "far"])).stdout == b"far"


async def test_a_dom0_that_ends_before_it_answers_is_an_error_that_says_so(elsewhere):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind("admin.sock")
        listening.listen()
        listening.setblocking(False)

        async def hang_up() -> None:
            await trio.lowlevel.wait_readable(listening)
            listening.accept()[0].close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with pytest.raises(TvError) as caught:
                await ask(Client(elsewhere).list)
    assert caught.value.status is Status.EIO
