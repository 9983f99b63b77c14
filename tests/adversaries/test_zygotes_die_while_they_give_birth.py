"""Zygotes killed while guests and drivers are on their way: a create succeeds or is refused whole; nothing is left."""

import os
import random
import signal
import threading
from functools import partial

import pytest

from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.status import Status
from tests.adversaries.lab import Lab
from tests.promises.events import wait_until
from tests.promises.processes import children_of
from triovisor.client import TvError

ROUNDS = 6


def zygotes_of(lab: Lab) -> list[int]:
    """The base, whose command line the roles' zygotes and the children on their way share, and all of those."""
    known = {event["pid"] for event in lab.log.all("zygote.started")}
    return [process.pid for process in children_of(lab.pid) if process.pid in known and process.state != "Z"]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def are_gone(lab: Lab, pids: list[int]) -> bool:
    return not set(pids) & set(zygotes_of(lab))


@pytest.mark.parametrize("which", ["all", "the base", "the roles"])
def test_a_create_succeeds_or_is_refused_whole(lab: Lab, which):
    chance = random.Random(7)
    for number in range(ROUNDS):
        name = f"birth-{number}"
        config = GuestConfig(name=name, memory=32, disk=[DiskConfig(target=str(lab.image()), vdev="vda")])
        zygotes = zygotes_of(lab)
        base = sorted(zygotes)[:1]
        chosen = {"all": zygotes, "the base": base, "the roles": [pid for pid in zygotes if pid not in base]}[which]
        timer = threading.Timer(chance.uniform(0, 0.02), kill_all, [chosen])
        timer.start()
        try:
            lab.client.create(config)
        except TvError as error:
            if error.status is not Status.EIO or name not in error.why:
                raise
        timer.join()
        wait_until(partial(are_gone, lab, chosen), "whoever was killed is dead")
        if name in [domain.name for domain in lab.client.list()]:
            lab.client.destroy(name)
        lab.client.create(config)
        lab.client.destroy(name)
    lab.check_innocents()
    lab.check_descriptors()
    wait_until(lambda: not zombies_of(lab), "all the dead are reaped")


def zombies_of(lab: Lab) -> list[int]:
    return [process.pid for process in children_of(lab.pid) if process.state == "Z"]


def test_a_driver_that_dies_with_every_zygote_is_followed_by_another(lab: Lab):
    for _ in range(5):
        with lab.driver_puppet() as puppet:
            kill_all(zygotes_of(lab))
            puppet.kill()
            lab.wait_death(puppet)
    lab.check_innocents()
    lab.check_descriptors()
    wait_until(lambda: not zombies_of(lab), "all the dead are reaped")
