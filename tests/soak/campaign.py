"""A soak: parts die at random under eight guests, and at the end nothing is lost and nothing has leaked."""

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel.abi.guest_config import Action
from tests.promises.lab import start_lab
from tests.soak.acts import ACTS, BREAKS_RINGS, Scene
from tests.soak.guests import LoadedGuest, MortalGuest
from tests.soak.holdings import grown, holdings_of

__all__ = ["LOADED", "MORTAL", "Outcome", "soak"]

LOADED, MORTAL = 6, 2
IMAGE_MIB = 8
QUIET_S = (0.0, 0.3)
"""Between a recovery and the next act, by chance."""

SETTLE_S = 1.5
"""For what is freed or made a moment after a recovery, before it is counted what is held."""

ACCUSATIONS, ACCUSATIONS_WINDOW_S = 3, 70.0
"""So many broken rings in so long, beside two as each act is done once: a guest that accuses its backends more than
five times a minute (`kernel.xenbus`) is ended itself."""

HEARTBEAT = "{ interval_s = 0.1, deadline_s = 0.5 }"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done how often, operations of the loads, records checked, and what there is more of than before."""

    acts: Counter[str]
    operations: int
    records: int
    grown: dict[str, tuple[float, float]]


def soak(run: Path, images: Path, seed: int, seconds: float, say: Callable[[str], None]) -> Outcome:
    """Every act once, then at random. Fails as a test does for whatever is lost or wrong."""
    chance = random.Random(seed)
    chooser = _Chooser(chance)
    done: Counter[str] = Counter()
    with _scene(run, images, seconds) as (scene, loaded):
        for name in ACTS:
            _act(scene, name, done, say)
        time.sleep(SETTLE_S)
        before = holdings_of(scene.lab.pid, run)
        say(f"held after each act once: {before}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _act(scene, chooser.next(), done, say)
            time.sleep(chance.uniform(*QUIET_S))
        time.sleep(SETTLE_S)
        after = holdings_of(scene.lab.pid, run)
        say(f"held at the end: {after}")
        operations = sum(guest.finish() for guest in loaded)
        records = sum(guest.check() for guest in scene.mortal)
    return Outcome(done, operations, records, grown(before, after))


class _Chooser:
    """Acts at random, though broken rings only as often as no guest is blamed for."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._broken_at: deque[float] = deque(maxlen=ACCUSATIONS)

    def next(self) -> str:
        now = time.monotonic()
        too_soon = len(self._broken_at) == ACCUSATIONS and now - self._broken_at[0] < ACCUSATIONS_WINDOW_S
        name = self._chance.choice([name for name in ACTS if not (too_soon and name in BREAKS_RINGS)])
        if name in BREAKS_RINGS:
            self._broken_at.append(now)
        return name


def _act(scene: Scene, name: str, done: Counter[str], say: Callable[[str], None]) -> None:
    say(name)
    ACTS[name](scene)
    done[name] += 1


@contextmanager
def _scene(run: Path, images: Path, seconds: float) -> Iterator[tuple[Scene, list[LoadedGuest]]]:
    """A hypervisor with its eight guests."""
    with start_lab(run, standby=True, console=True, store="true", heartbeat=HEARTBEAT) as lab:
        loaded = [f"loaded{number}" for number in range(LOADED)]
        mortal = [f"mortal{number}" for number in range(MORTAL)]
        for name in loaded:
            lab.create(name, _image(images, name), memory=48)
        for name in mortal:
            lab.create(name, _image(images, name), memory=48, on_crash=Action.RESTART)
        guests = [LoadedGuest(lab, name, 2 * seconds + 600) for name in loaded]
        yield Scene(lab, [MortalGuest(lab, name) for name in mortal], _image(images, "spare")), guests
        lab.destroy_all()


def _image(folder: Path, name: str) -> Path:
    path = folder / f"{name}.img"
    with path.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    return path
