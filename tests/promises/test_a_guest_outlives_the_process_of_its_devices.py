"""kill -9 of a guest's actor, the process that is its devices: another goes on; the guest sees a pause and no error."""

import random
import time

from tests.promises.actors import kill_actor, own_load, wait_actor_serves
from tests.promises.lab import start_lab

KILLS = 30


def test_two_hundred_kills_of_the_actor_under_load_lose_nothing(tmp_path, images):
    chance = random.Random(7)
    with start_lab(tmp_path) as lab:
        lab.create("g", images("actor", 32), memory=96)
        with own_load(lab, "g", depth=32, span="16m"):
            for _ in range(KILLS):
                since = kill_actor(lab, "g")
                wait_actor_serves(lab, "g", since)
                time.sleep(chance.uniform(0.1, 0.15))
        assert lab.client.info("g").generation == 1
