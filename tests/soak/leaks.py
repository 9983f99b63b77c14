"""`python -m tests.soak.leaks`: a thousand driver restarts, a thousand guests that come and go; nothing is left."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kernel.abi.run import new_run
from tests.promises.lab import Lab, start_lab
from tests.promises.load import verified_load
from tests.soak.holdings import grown, holdings_of

__all__ = ["find_leaks"]

WARM_UP = 5
"""Times before the first count: what is made once is made then."""

SETTLE_S = 1.5


def find_leaks(run: Path, images: Path, times: int, say: Callable[[str], None]) -> dict[str, tuple[float, float]]:
    """Kill a driver under load, and create and destroy a guest, so many times each; what there is more of then."""
    stays, passes = images / "stays.img", images / "passes.img"
    for image in (stays, passes):
        image.write_bytes(bytes(8 << 20))
    with start_lab(run, standby=True) as lab:
        lab.create("stays", stays, memory=48)
        _come_and_go(lab, passes, WARM_UP)
        _restart(lab, WARM_UP)
        before = holdings_of(lab.pid, run)
        say(f"held before: {before}")
        _restart(lab, times)
        say(f"{times} restarts")
        _come_and_go(lab, passes, times)
        say(f"{times} guests came and went")
        time.sleep(SETTLE_S)
        after = holdings_of(lab.pid, run)
        say(f"held after: {after}")
    return grown(before, after)


def _restart(lab: Lab, times: int) -> None:
    with verified_load(lab.client, "stays"):
        for _ in range(times):
            lab.watch.kill()
    time.sleep(SETTLE_S)


def _come_and_go(lab: Lab, image: Path, times: int) -> None:
    for _ in range(times):
        lab.create("passes", image, memory=32)
        lab.run_in("passes", "dd", "if=/dev/vda", "of=/dev/null", "bs=4k", "count=1")
        lab.client.destroy("passes")
    lab.note_vbds()


def main() -> int:
    """Exit status 0 when nothing has leaked."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.leaks", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="restarts, and guests (1000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="triovisor-leaks.") as folder:
        leaks = find_leaks(new_run(), Path(folder), options.times, lambda text: print(text, flush=True))
    for name, (before, after) in leaks.items():
        print(f"LEAKED  {name}: {before:g} -> {after:g}")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
