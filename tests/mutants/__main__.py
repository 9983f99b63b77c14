"""`python -m tests.mutants [NAME…]`: break the code in the ways that matter, and see that a test goes red for each.

Exit status 0 when each mutant was seen, 1 when one was not.
"""

import argparse
import collections
import random
import sys
from collections.abc import Callable, Sequence

from tests.mutants.catalogue import Mutant, load
from tests.mutants.copies import folder_for_a_copy, stopped_by_signals
from tests.mutants.judging import Judge, VerdictKind

__all__ = ["judge_all", "main", "sample"]

INTERRUPTED = 130
"""As a shell has it for Ctrl-C."""

GOOD = (VerdictKind.RED, VerdictKind.NOT_POSSIBLE)


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them, the same for the same seed."""
    return random.Random(seed).sample(list(mutants), min(count, len(mutants)))


def judge_all(mutants: Sequence[Mutant], say: Callable[[str], None]) -> bool:
    """Judge each in a copy of the project; `say` gets a row for each and a last line. Whether all were seen."""
    counts: collections.Counter[VerdictKind] = collections.Counter()
    width = max(len(mutant.name) for mutant in mutants)
    with folder_for_a_copy() as folder:
        judge = Judge(folder)
        for mutant in mutants:
            verdict = judge.judge(mutant)
            counts[verdict.kind] += 1
            say(f"{verdict.kind.value:<8}  {mutant.name:<{width}}  {verdict.took_s:5.1f} s  {verdict.why}")
    say(f"{len(mutants)} mutants: " + ", ".join(f"{counts[kind]} {kind.value}" for kind in VerdictKind if counts[kind]))
    return all(kind in GOOD for kind in counts)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone")
    parser.add_argument("--fast", action="store_true", help="without the slow ones")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, chosen by the seed")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="by default another each time")
    given = parser.parse_args(words)
    mutants = load()
    unknown = set(given.names) - {mutant.name for mutant in mutants}
    if unknown:
        print(f"no such mutant: {', '.join(sorted(unknown))}: tests/mutants/*.toml has them", file=sys.stderr)
        return 2
    if given.names:
        mutants = [mutant for mutant in mutants if mutant.name in given.names]
    if given.fast:
        mutants = [mutant for mutant in mutants if not mutant.slow]
    if given.sample is not None:
        print(f"a sample of {given.sample}; again: --sample {given.sample} --seed {given.seed}", flush=True)
        mutants = sample(mutants, given.sample, given.seed)
    try:
        with stopped_by_signals():
            return 0 if judge_all(mutants, lambda row: print(row, flush=True)) else 1
    except KeyboardInterrupt:
        print("interrupted: nothing is left behind", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
