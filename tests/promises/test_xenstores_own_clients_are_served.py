"""Programs that were written for xenstore, unmodified, on the socket in the run folder: Debian's tools, Xen's own test
of a store, and a library from PyPI.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import pyxs

from kernel.abi.run import STORE_SOCKET
from tests.drivers.store.xen import xen_environment, xen_program
from tests.promises.events import wait_until
from tests.promises.lab import start_lab
from tests.promises.xs_client import XsClient

PATIENCE_S = 60


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with start_lab(tmp_path_factory.mktemp("run"), store="true") as started:
        yield started


@pytest.fixture(scope="module")
def socket(lab) -> Path:
    path: Path = lab.run / STORE_SOCKET
    return path


def run(socket: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [xen_program(program), *arguments],
        env=xen_environment(socket),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
    return done.stdout


def test_debians_tools_write_read_list_and_remove(socket):
    run(socket, "xenstore-write", "/tools/a", "one", "/tools/b", "two")
    assert run(socket, "xenstore-read", "/tools/a", "/tools/b") == "one\ntwo\n"
    run(socket, "xenstore-chmod", "/tools/b", "n0", "r5")
    listed = [line.split() for line in run(socket, "xenstore-ls", "-p", "/tools").splitlines()]
    assert [(line[0], line[2], line[-1]) for line in listed] == [("a", '"one"', "(n0)"), ("b", '"two"', "(n0,r5)")]
    run(socket, "xenstore-rm", "/tools")
    assert "tools" not in run(socket, "xenstore-list", "/").split()


def test_each_domain_is_there_by_its_name(socket, lab):
    for domain in lab.client.list():
        assert run(socket, "xenstore-read", f"/local/domain/{domain.domid}/name") == f"{domain.name}\n"


def test_xens_own_test_of_a_store_passes(socket):
    said = run(socket, "test-xenstore", "-i", "100")
    assert "failed" not in said
    assert said.count("avg:") == 12


def test_a_watch_of_debians_tool_outlives_each_store(socket, lab):
    watching = subprocess.Popen(
        [xen_program("xenstore-watch"), "-n", "12", "/watched"],
        env=xen_environment(socket),
        stdout=subprocess.PIPE,
        text=True,
    )
    with watching, XsClient(socket) as client:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline() == "/watched\n"
            for number in range(11):
                os.kill(lab.pid_of("store"), signal.SIGKILL)
                client.write(f"/watched/{number}", "")
                assert watching.stdout.readline() == f"/watched/{number}\n"
            assert watching.wait(PATIENCE_S) == 0
        finally:
            watching.kill()


def test_a_library_that_knows_nothing_of_ours_is_served(socket, lab):
    with pyxs.Client(unix_socket_path=str(socket)) as client:
        client[b"/pyxs/a"] = b"1"
        pid = lab.pid_of("store")
        os.kill(pid, signal.SIGKILL)
        assert client[b"/pyxs/a"] == b"1"
        client.transaction()
        client[b"/pyxs/b"] = b"2"
        assert client.commit() is True
        assert sorted(client.list(b"/pyxs")) == [b"a", b"b"]
        assert client.exists(b"/pyxs/c") is False
        client.delete(b"/pyxs")
    wait_until(lambda: lab.pid_of("store") != pid, "another store")
