"""A hypervisor for the tests of one promise: real processes, real guests, an own manifest, nothing left at the end."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel.abi.guest_config import DiskConfig, DriverInfo, GuestConfig
from tests.promises.driver_watch import DriverWatch
from tests.promises.events import EventLog, wait_until
from tests.promises.processes import descendants_of, wait_gone
from triovisor.lab import Hypervisor, start_hypervisor

__all__ = ["DRIVER", "GONE_S", "ROOT", "UNLIMITED", "Lab", "manifest", "start_lab", "tree_with"]

DRIVER = "blkback"
UNLIMITED = "{ free_deaths = 1000000, max_deaths = 1000000 }"
"""Never a back-off: recovery is tested, not patience."""

CONSOLE = """
[[driver]]
name = "console"
role = "drivers.console.main"
device = "console"
standby = false
restart = {restart}
heartbeat = {{ interval_s = 0.1, deadline_s = 1.0, idle_s = 1.0 }}
"""
"""Beside the driver that a test is about."""

STORE = """
[[driver]]
name = "store"
role = "drivers.store.main"
device = "xenstore"
standby = {standby}
restart = {restart}
heartbeat = {{ interval_s = 0.1, deadline_s = 1.0, idle_s = 5.0 }}
"""

GONE_S = 1.0
"""For the last process of a hypervisor to be gone after it."""
ROOT = Path(__file__).parents[2]


class Lab:
    """A running hypervisor with one driver domain."""

    def __init__(self, hypervisor: Hypervisor, driver: str, *, standby: bool) -> None:
        self.hypervisor = hypervisor
        self.client = hypervisor.client
        self.run = hypervisor.run
        self.pid = hypervisor.process.pid
        self.log = EventLog(self.run / "log" / "hypervisor.1.jsonl")
        self.watch = DriverWatch(self.log, driver, standby=standby)

    def log_of(self, peer: str, name: str = DRIVER) -> EventLog:
        """The events of one incarnation, "7.3" for its generation 3."""
        return EventLog(self.run / "log" / f"{name}.{peer.partition('.')[2]}.jsonl")

    def driver(self) -> DriverInfo:
        """As `tv driver list` has it."""
        return next(driver for driver in self.client.drivers() if driver.name == self.watch.name)

    def pid_of(self, driver: str) -> int:
        """Of the incarnation that serves, waited for."""
        return int(
            wait_until(
                lambda: next((each.pid for each in self.client.drivers() if each.name == driver), None),
                f"an incarnation of {driver}",
            )
        )

    def create(self, name: str, *images: Path, memory: int = 64, read_only: bool = False, **settings) -> None:
        """A guest with a disk for each image, vda first."""
        disks = [
            DiskConfig(target=str(image), vdev=f"vd{letter}", access="ro" if read_only else "rw", backend=DRIVER)
            for letter, image in zip("abcdefghijklmnop", images, strict=False)
        ]
        self.client.create(GuestConfig(name=name, memory=memory, disk=disks, **settings))
        self.note_vbds()

    def note_vbds(self) -> None:
        """Have the watch know which vbds the driver has now."""
        self.watch.handles = {vbd.handle for vbd in self.driver().vbds}

    def run_in(self, guest: str, *argv: str, stdin: bytes = b"") -> bytes:
        """What a command in a guest prints; it must succeed."""
        result = self.client.exec(guest, argv, stdin)
        assert result.status == 0, f"{argv} in {guest}: {result}"
        return result.stdout

    def destroy_all(self) -> None:
        """Destroy every guest, so that the next test has the hypervisor to itself."""
        for domain in self.client.list():
            if domain.kind in ("pv", "native"):
                self.client.destroy(domain.name)
        self.watch.handles = set()


def manifest(
    *,
    name: str = DRIVER,
    role: str = "drivers.blkback.main",
    standby: bool = False,
    restart: str = UNLIMITED,
    heartbeat: str = "{ interval_s = 0.1, deadline_s = 1.0 }",
    address_space: int = 16384,
    options: str = "{}",
    image_format: str = "raw",
    program: str = "",
    guests: str = "",
    native: str = "",
    shutdown_grace_s: float = 5.0,
    console: bool = False,
    console_restart: str = UNLIMITED,
    store: str = "",
) -> str:
    """A boot manifest in TOML, with drivers that may be told to misbehave. Tables are TOML's inline ones. `store`:
    whether it has a standby, "true" or "false"; there is none without."""
    return f"""
faults = true
shutdown_grace_s = {shutdown_grace_s}

[[driver]]
name = "{name}"
role = "{role}"
standby = {str(standby).lower()}
restart = {restart}
heartbeat = {heartbeat}
address_space = {address_space}
options = {options}
format = "{image_format}"
program = "{program}"

{CONSOLE.format(restart=console_restart) if console else ""}
{STORE.format(standby=store, restart=UNLIMITED) if store else ""}
[guests]
{guests}

[native]
{native}
"""


@contextlib.contextmanager
def start_lab(run: Path, *, tree: Path | None = None, prefix: Sequence[str] = (), **settings) -> Iterator[Lab]:
    """Start a hypervisor in `run`, with `manifest(**settings)`, from the source tree `tree`, through `prefix`.

    At the end it must stop with status 0 and leave no process, unless the test has ended it.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = run / "boot.toml"
    file.write_text(manifest(**settings))
    with contextlib.chdir(tree or ROOT), start_hypervisor(run, file, prefix) as hypervisor:
        lab = Lab(hypervisor, settings.get("name", DRIVER), standby=settings.get("standby", False))
        try:
            yield lab
        finally:
            if hypervisor.process.poll() not in (None, 0, -signal.SIGKILL):
                print(f"the hypervisor ended: {''.join(hypervisor.said)}")
        if hypervisor.process.poll() is None:
            family = descendants_of(lab.pid)
            assert hypervisor.stop() == 0, f"see {run}/log"
            wait_gone(family, GONE_S)


def tree_with(folder: Path, package: str, role: str) -> Path:
    """A source tree like this one, where a module of `tests/promises/roles` is also the role `drivers.PACKAGE.ROLE`.

    A domain's jail shows it the source tree's packages and nothing else, and the import wall has a driver see its own
    package alone: so a role of the tests must be part of a driver.
    """
    drivers = folder / "drivers"
    (drivers / package).mkdir(parents=True)
    for name in ("kernel", "domains"):
        (folder / name).symlink_to(ROOT / name)
    for entry in (ROOT / "drivers").iterdir():
        if entry.name != package and entry.name != "__pycache__":
            (drivers / entry.name).symlink_to(entry)
    if (ROOT / "drivers" / package).is_dir():
        for entry in (ROOT / "drivers" / package).glob("*.py"):
            (drivers / package / entry.name).write_bytes(entry.read_bytes())
    (drivers / package / "__init__.py").touch()
    role_file = Path(__file__).with_name("roles") / f"{role}.py"
    (drivers / package / f"{role}.py").write_bytes(role_file.read_bytes())
    os.chmod(folder, 0o755)
    return folder
