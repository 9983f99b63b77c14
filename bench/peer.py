"""The peer of the block path: QEMU's storage daemon as the guest's vhost-user back end. It isolates nothing."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.bare import end_with_parent
from bench.load import BenchError
from kernel.abi.cache import find_program

__all__ = ["DAEMON", "start_peer"]

DAEMON = "qemu-storage-daemon"
START_S = 10.0
STOP_S = 5.0


@contextmanager
def start_peer(image: Path, socket_path: Path, cpu: int) -> Iterator[None]:
    """Export an image until the end of the block. Raises BenchError where it does not start."""
    daemon = find_program(DAEMON)
    if daemon is None:
        raise BenchError(f"no {DAEMON}, the peer of the block path; run: python -m triovisor.provision")
    process = _start(daemon, image, socket_path, cpu)
    try:
        _wait_for_socket(process, socket_path)
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(daemon: Path, image: Path, socket_path: Path, cpu: int) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        end_with_parent()
        os.sched_setaffinity(0, {cpu})

    export = f"type=vhost-user-blk,id=export,addr.type=unix,addr.path={socket_path},node-name=image,writable=on"
    command = [str(daemon), "--blockdev", f"driver=file,node-name=image,filename={image}", "--export", export]
    return subprocess.Popen(command, preexec_fn=prepare, stdin=subprocess.DEVNULL)


def _wait_for_socket(process: subprocess.Popen[bytes], socket_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while not socket_path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{DAEMON} did not start: its reason stands above")
        time.sleep(0.01)
