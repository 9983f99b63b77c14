"""What is done to a hypervisor's parts in a soak. Each act returns once what it broke is whole again."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from kernel.abi.run import STORE_SOCKET
from tests.promises.actors import wait_actor_below
from tests.promises.events import wait_until
from tests.promises.lab import DRIVER, Lab
from tests.promises.processes import children_of
from tests.promises.xs_client import XsClient
from tests.soak.guests import MortalGuest, tell
from triovisor.client import TvError

__all__ = ["ACTS", "BREAKS_RINGS", "Act", "Scene"]

PASSER_BY = "passer-by"
CONSOLE = "console"
STORE = "store"
COUNT = "/soak/count"


class Scene:
    """The lab, and who and what acts need of it."""

    def __init__(self, lab: Lab, mortal: list[MortalGuest], spare_image: Path) -> None:
        self.lab = lab
        self.mortal = mortal
        self.spare_image = spare_image
        self.turns = 0
        self.counted = 0
        """In xenstore."""

    def next_mortal(self) -> MortalGuest:
        """Each in its turn."""
        self.turns += 1
        return self.mortal[self.turns % len(self.mortal)]


Act = Callable[[Scene], object]


def _kill_driver(scene: Scene) -> object:
    return scene.lab.watch.kill()


def _fail(what: str) -> Act:
    """The driver is told to fail in this way. Dom0 carries the order, and may be away for a moment."""
    return lambda scene: scene.lab.watch.strike(
        lambda _pid: wait_until(lambda: _inject(scene.lab, what), f"{what} is ordered")
    )


def _inject(lab: Lab, what: str) -> bool:
    try:
        lab.client.inject(DRIVER, what)
    except TvError:
        return False
    return True


def _kill_standby(scene: Scene) -> None:
    watch = scene.lab.watch
    watch.wait_serving()
    standby = watch.standing_by()
    os.kill(watch.pid_of(standby), signal.SIGKILL)
    watch.wait_death(standby)
    watch.wait_serving()


def _kill_both(scene: Scene) -> None:
    """The active incarnation and its standby at once: nobody is left to be promoted."""
    watch = scene.lab.watch
    active = watch.wait_serving()
    both = [active, watch.standing_by()]
    for peer in both:
        os.kill(watch.pid_of(peer), signal.SIGKILL)
    for peer in both:
        watch.wait_death(peer)
    watch.wait_serving(other_than=active)


def _kill_zygotes(scene: Scene) -> None:
    """All of them; then the driver, whose successor needs new ones."""
    for event in scene.lab.log.all("zygote.started"):
        if _is_zygote(event["pid"], scene.lab.pid):
            os.kill(event["pid"], signal.SIGKILL)
    scene.lab.watch.kill()


def _is_zygote(pid: int, hypervisor: int) -> bool:
    """Whether this pid still is a child of the hypervisor that was started as a zygote, and no later process."""
    return any(child.pid == pid and child.state != "Z" and _runs(pid, b"zygote") for child in children_of(hypervisor))


def _runs(pid: int, word: bytes) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill_keeper(scene: Scene) -> None:
    since = scene.lab.log.mark()
    (keeper,) = [child.pid for child in children_of(scene.lab.pid) if _runs(child.pid, b"kernel.keeper")]
    os.kill(keeper, signal.SIGKILL)
    scene.lab.log.wait("keeper.started", since)


def _kill_dom0(scene: Scene) -> None:
    since = scene.lab.log.mark()
    dom0 = wait_until(lambda: _dom0_pid(scene.lab), "Dom0")
    os.kill(dom0, signal.SIGKILL)
    scene.lab.log.wait("domain.started", since, name="dom0")
    wait_until(lambda: _dom0_pid(scene.lab), "the next Dom0")


def _dom0_pid(lab: Lab) -> int | None:
    try:
        return lab.client.info("dom0").pid
    except TvError:
        return None


def _kill_actors(scene: Scene) -> None:
    """The process of its devices, of every guest at once. Each successor has its ring when this returns: a driver that
    is to break one would break one that nobody uses any more."""
    lab = scene.lab
    serving = lab.watch.wait_serving()
    wait_until(lambda: _dom0_pid(lab), "Dom0")
    since = lab.log.mark()
    guests = [domain for domain in lab.client.list() if domain.kind == "pv"]
    for guest in guests:
        os.kill(wait_actor_below(guest.pid or 0), signal.SIGKILL)
    for guest in guests:
        lab.log.wait("domain.soft_reset", since, name=guest.name)
    wait_until(lambda: lab.watch.handles <= _connected(lab, since, serving), "new rings")


def _connected(lab: Lab, since: int, backend: str) -> set[int]:
    return {event["handle"] for event in lab.log.all("vbd.connected", since, backend=backend)}


def _kill_console(scene: Scene) -> None:
    lab = scene.lab
    wait_until(lambda: _dom0_pid(lab), "Dom0")
    since = lab.log.mark()
    os.kill(lab.pid_of(CONSOLE), signal.SIGKILL)
    lab.log.wait("domain.started", since, name=CONSOLE)


def _kill_store(scene: Scene) -> None:
    """Under a transaction, which is done once all the same."""
    lab = scene.lab
    wait_until(lambda: _dom0_pid(lab), "Dom0")
    with XsClient(lab.run / STORE_SOCKET) as client:
        client.add(COUNT)
        os.kill(lab.pid_of(STORE), signal.SIGKILL)
        client.add(COUNT)
        scene.counted += 2
        assert client.read(COUNT) == str(scene.counted).encode()


def _pause(scene: Scene) -> None:
    """A guest under load stands still for a moment."""
    lab = scene.lab
    wait_until(lambda: _dom0_pid(lab), "Dom0")
    guest = next(domain.name for domain in lab.client.list() if domain.kind == "pv")
    lab.client.pause(guest)
    lab.client.unpause(guest)


def _write_records(scene: Scene) -> None:
    for guest in scene.mortal:
        guest.write()


def _kill_system(scene: Scene) -> None:
    guest = scene.next_mortal()
    guest.write()
    guest.kill()
    guest.check()


def _come_and_go(scene: Scene) -> None:
    """A guest with a disk is created, works, and is destroyed."""
    lab = scene.lab
    wait_until(lambda: _dom0_pid(lab), "Dom0")
    lab.create(PASSER_BY, scene.spare_image, memory=32)
    tell(lab, PASSER_BY, "dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync 2> /dev/null")
    lab.client.destroy(PASSER_BY)
    lab.note_vbds()


ACTS: dict[str, Act] = {
    "kill driver": _kill_driver,
    "kill standby": _kill_standby,
    "kill both": _kill_both,
    "hang": _fail("hang"),
    "exit": _fail("exit"),
    "corrupt ring": _fail("corrupt-ring"),
    "stray reply": _fail("stray-reply"),
    "crash at request": _fail("crash@request"),
    "crash at io": _fail("crash@io"),
    "crash at reply": _fail("crash@reply"),
    "kill zygotes": _kill_zygotes,
    "kill log keeper": _kill_keeper,
    "kill Dom0": _kill_dom0,
    "kill a guest's system": _kill_system,
    "kill every actor": _kill_actors,
    "kill console driver": _kill_console,
    "kill store": _kill_store,
    "pause": _pause,
    "write records": _write_records,
    "come and go": _come_and_go,
}
"""By name."""

BREAKS_RINGS = ("corrupt ring", "stray reply")
"""What a guest finds, and blames the driver for."""
