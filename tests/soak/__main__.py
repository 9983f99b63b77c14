"""`python -m tests.soak`: an hour of random kills under eight guests with verified load.

Exit status 0 when nothing was lost and nothing leaked. The seed is printed: the same seed does the same acts in order.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from kernel.abi.run import new_run
from tests.soak.campaign import soak


def main() -> int:
    """Run one soak and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long after each act was done once (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of a run before")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    run = new_run()
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:8.1f} s  {text}", flush=True)

    say(f"seed {options.seed}, run folder {run}")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="triovisor-soak.") as images:
        try:
            outcome = soak(run, Path(images), options.seed, options.minutes * 60, say)
        except AssertionError as error:
            say(f"FAILED, seed {options.seed}: {error}")
            return 1
    for name, count in sorted(outcome.acts.items()):
        print(f"{count:6}  {name}")
    print(f"{outcome.operations} operations without an error, {outcome.records} records read back, nothing lost")
    for name, (before, after) in outcome.grown.items():
        print(f"LEAKED  {name}: {before:g} -> {after:g}")
    return 1 if outcome.grown else 0


if __name__ == "__main__":
    sys.exit(main())
