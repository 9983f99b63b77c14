"""This host's loops per jiffy, as the guest kernel counts them: told at boot, it need not count again (0.12 s)."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading

from kernel.abi.cache import find_program
from triovisor.provision.files import KERNEL, SetupError, guest_folder, publish, read_lpj

__all__ = ["measure_lpj", "provide_lpj"]

BOOTS, ATTEMPTS = 3, 9
DEADLINE_S = 10.0
"""Until a kernel has counted. It takes 0.2 s; a host that needs longer cannot run guests."""

LINE = ("mem=32M", "con=null", "con0=fd:1", "initcall_blacklist=raid6_select_algo")
"""The kernel's words come out when its console does. Without the blacklist that is 0.85 s later."""

PATTERN = re.compile(rb"\(lpj=(\d+)\)")


def provide_lpj() -> tuple[int, bool]:
    """The cached measurement, and whether it had to be made."""
    known = read_lpj()
    if known is not None:
        return known, False
    lpj = measure_lpj()
    publish(guest_folder() / "lpj", f"{lpj}\n".encode())
    return lpj, True


def measure_lpj() -> int:
    """The most of three boots: on a busy host a kernel counts less, a quarter even. One in some fifty does not get that
    far; where too many do not, raises SetupError with the kernel's last words."""
    kernel = find_program(KERNEL)
    if kernel is None:
        raise SetupError(f"no guest kernel {KERNEL}; run: apt-get install user-mode-linux")
    counted: list[int] = []
    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            counted.append(_count_once(str(kernel)))
        except SetupError:
            if not attempts_left:
                raise
        if len(counted) == BOOTS:
            break
    return max(counted)


def _count_once(kernel: str) -> int:
    folder = tempfile.mkdtemp(prefix="triovisor-lpj.")
    argv = ["setarch", "-R", kernel, *LINE, f"uml_dir={folder}/", "umid=lpj"]
    boot = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = threading.Timer(DEADLINE_S, _end, [boot])
    deadline.start()
    try:
        return _find_lpj(boot)
    finally:
        deadline.cancel()
        _end(boot)
        boot.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _find_lpj(boot: subprocess.Popen[bytes]) -> int:
    text = b""
    assert boot.stdout is not None
    with boot.stdout as output:
        while chunk := os.read(output.fileno(), 65536):
            text += chunk
            if found := PATTERN.search(text):
                return int(found[1])
    words = text.decode(errors="replace").strip().splitlines() or ["nothing"]
    raise SetupError(f"{KERNEL} does not boot here; it said: {words[-1]}")


def _end(boot: subprocess.Popen[bytes]) -> None:
    """The kernel and its helpers, which outlive it, are one process group."""
    try:
        os.killpg(boot.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
