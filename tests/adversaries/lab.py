"""A hypervisor with an innocent guest on an innocent driver, puppets beside them, and what holds after an attack."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.abi.guest_config import Action, DiskConfig, GuestConfig
from tests.adversaries.puppet import Puppet
from tests.promises.events import Event, EventLog, wait_until
from tests.promises.lab import ROOT, UNLIMITED
from tests.promises.processes import descendants_of, wait_gone
from triovisor.client import TvError
from triovisor.lab import Hypervisor, start_hypervisor

__all__ = ["INNOCENT", "Lab", "start_lab", "tree_of_puppets"]

INNOCENT = "innocent"
GONE_S = 1.0
IMAGE_MIB = 8

MANIFEST = f"""
[[driver]]
name = "blkback"
role = "drivers.blkback.main"
standby = false
restart = {UNLIMITED}

[[driver]]
name = "puppet-driver"
role = "drivers.puppet.main"
standby = false
restart = {UNLIMITED}
heartbeat = {{ interval_s = 60, deadline_s = 600 }}

[guests]
role = "domains.guests.puppet"
heartbeat = {{ interval_s = 60, deadline_s = 600 }}
"""
"""Puppets answer no ping, unless the test does."""


class Lab:
    """A running hypervisor under attack."""

    def __init__(self, hypervisor: Hypervisor, images: Path) -> None:
        self.hypervisor = hypervisor
        self.client = hypervisor.client
        self.run = hypervisor.run
        self.pid = hypervisor.process.pid
        self.log = EventLog(self.run / "log" / "hypervisor.1.jsonl")
        self._images = images
        self._unharmed: dict[str, int] = {}
        self._descriptors = 0
        self._number = itertools.count()

    def image(self) -> Path:
        """A sparse image of zeros. Each guest has its own: a puppet of a driver lets go of none."""
        path = self._images / f"{self.run.name}.{next(self._number)}.img"
        with path.open("wb") as file:
            file.truncate(IMAGE_MIB << 20)
        return path

    def create(self, name: str, *, backend: str = "blkback", on_crash: Action = Action.DESTROY) -> None:
        """A guest with one disk."""
        disk = DiskConfig(target=str(self.image()), vdev="vda", backend=backend)
        self.client.create(GuestConfig(name=name, memory=32, disk=[disk], on_crash=on_crash))

    def puppet(self, name: str, since: int = 0) -> Puppet:
        """The living incarnation of a puppet domain, its strings in our hands. `since`: only those cloned later."""
        cloned: Event = wait_until(lambda: self._living(name, since), f"a living {name}")
        log = EventLog(self.run / "log" / f"{name}.{cloned['peer'].partition('.')[2]}.jsonl")
        ready = log.wait("puppet.ready")
        return Puppet(name, cloned["peer"], cloned["pid"], ready["control"], ready["log"])

    def driver_puppet(self, since: int = 0) -> Puppet:
        """The puppet that is a driver."""
        return self.puppet("puppet-driver", since)

    @contextmanager
    def guest_puppet(self, *, backend: str = "blkback", on_crash: Action = Action.DESTROY) -> Iterator[Puppet]:
        """A puppet that is a guest; whatever is left of it is destroyed at the end."""
        name = "puppet-guest"
        since = self.log.mark()
        self.create(name, backend=backend, on_crash=on_crash)
        try:
            with self.puppet(name, since) as puppet:
                yield puppet
        finally:
            self.destroy(name)

    def _living(self, name: str, since: int) -> Event | None:
        cloned = self.log.all("domain.cloned", since, name=name)
        if not cloned or self.log.all("domain.died", since, peer=cloned[-1]["peer"]):
            return None
        return cloned[-1]

    def destroy(self, name: str) -> None:
        """Destroy a guest, if it is there."""
        if any(domain.name == name for domain in self.client.list()):
            self.client.destroy(name)

    def wait_death(self, puppet: Puppet) -> str:
        """How that incarnation ended; it must."""
        how: str = self.log.wait("domain.died", peer=str(puppet.peer))["how"]
        return how

    def descriptors(self) -> int:
        """Open in the hypervisor."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def note_peace(self) -> None:
        """Take down how it is before any attack: who lives in which incarnation, and the hypervisor's descriptors."""
        self.driver_puppet().close()
        self._unharmed = self._innocents()
        self._descriptors = self.descriptors()

    def _innocents(self) -> dict[str, int]:
        return {d.name: d.generation for d in self.client.list() if d.name in (INNOCENT, "blkback", "dom0")}

    def check_innocents(self) -> None:
        """Everybody who did no wrong is there, in the same incarnation, and works."""
        assert self.hypervisor.process.poll() is None, "the hypervisor is gone"
        assert self._innocents() == self._unharmed
        command = ["dd", "if=/dev/vda", "of=/dev/null", "bs=64k", "count=4", "iflag=direct"]
        result = self.client.exec(INNOCENT, command)
        assert result.status == 0, result

    def check_descriptors(self) -> None:
        """None leaked: as many as in peace, with the puppet's successor there. A few are in use for a moment."""
        self.driver_puppet().close()
        wait_until(lambda: self.descriptors() <= self._descriptors, f"no more than {self._descriptors} descriptors")


@contextmanager
def start_lab(run: Path, tree: Path, images: Path, manifest: str = MANIFEST) -> Iterator[Lab]:
    """Start it, with the innocent guest running. At the end it must stop with status 0 and leave no process."""
    run.mkdir(parents=True, exist_ok=True)
    file = run / "boot.toml"
    file.write_text(manifest)
    with contextlib.chdir(tree), start_hypervisor(run, file) as hypervisor:
        lab = Lab(hypervisor, images)
        lab.create(INNOCENT)
        wait_until(lambda: _answers(lab), f"{INNOCENT} runs")
        lab.note_peace()
        yield lab
        family = descendants_of(lab.pid)
        assert hypervisor.stop() == 0, f"see {run}/log"
        wait_gone(family, GONE_S)


def _answers(lab: Lab) -> bool:
    try:
        return lab.client.exec(INNOCENT, ["true"]).status == 0
    except TvError:
        return False


def tree_of_puppets(folder: Path) -> Path:
    """A source tree like this one, and the roles `drivers.puppet.main` and `domains.guests.puppet` in it.

    A domain's jail shows it the source tree's packages and nothing else, and the import wall has a role see its own
    package alone.
    """
    roles = Path(__file__).with_name("roles")
    (folder / "kernel").symlink_to(ROOT / "kernel")
    for package in ("drivers", "domains"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    guests, puppet = folder / "domains" / "guests", folder / "drivers" / "puppet"
    puppet.mkdir()
    (puppet / "__init__.py").touch()
    shutil.copy(roles / "puppet_driver.py", puppet / "main.py")
    shutil.copy(roles / "puppet_guest.py", guests / "puppet.py")
    folder.chmod(0o755)
    return folder
