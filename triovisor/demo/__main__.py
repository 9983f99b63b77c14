"""`python -m triovisor.demo`: a Linux guest writes, its disk driver dies seven times, nothing is lost.

Exit status 0 only if every fault struck, nothing acknowledged was lost, and the guest saw no error.
"""

import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console

from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.run import new_run
from triovisor.client import Client, TvError
from triovisor.demo.faults import FAULTS, Strike, strike
from triovisor.demo.verdict import Verdict, judge, outage_of, table
from triovisor.demo.writer import Writer, Written, verify
from triovisor.lab import LabError, start_hypervisor
from triovisor.provision.files import SetupError
from triovisor.provision.images import create_ext4

__all__ = ["main"]

GUEST = "demo"
DISK_MIB = 256
PAUSE_S = 0.7
"""Between two faults, so that each is seen alone."""

REBOOT_S = 20.0


class Timeline:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._began_s = time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        self._console.print(
            f"[dim]{time.monotonic() - self._began_s:6.2f} s[/]  [{style or 'default'}]{text}[/]", soft_wrap=True
        )

    def show(self, renderable: object) -> None:
        self._console.print(renderable)


def main() -> int:
    """Run the demo; its exit status."""
    timeline = Timeline()
    run = new_run()
    run.mkdir(parents=True)
    try:
        verdict = _run(timeline, run)
    except (LabError, SetupError, TvError, TimeoutError, RuntimeError) as error:
        timeline.say(f"demo: {error}", "bold red")
        return 1
    (run / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict)) + b"\n")
    timeline.show(table(verdict))
    timeline.show(f"Logs, consoles and verdict.json: {run}")
    return 0 if verdict.ok else 1


def _run(timeline: Timeline, run: Path) -> Verdict:
    image = run / "disk.img"
    create_ext4(image, DISK_MIB)
    with start_hypervisor(run, Path(__file__).with_name("boot.toml")) as hypervisor:
        client = hypervisor.client
        timeline.say(f"hypervisor {hypervisor.process.pid} is up: Dom0 and the disk driver, {_jail(client)}")
        _boot(timeline, client, image)
        written, strikes = _write_under_fire(timeline, client)
        _reboot(timeline, client)
        found = verify(client, GUEST, written.last)
        timeline.say(f"read back: {found['verified']:,} verified, {found['lost']} lost, {found['corrupt']} corrupt")
        errors = client.dmesg(GUEST).count(b"I/O error")
        client.shutdown(GUEST, wait_s=REBOOT_S)
    image.unlink()
    return judge(written, found, errors, strikes, len(FAULTS))


def _jail(client: Client) -> str:
    host = client.host()
    if host["jail"] == "full":
        return "each in the full jail"
    return f"each in the reduced jail, without {', '.join(host['jail_lacks'])}: python -m kernel doctor tells the cost"


def _boot(timeline: Timeline, client: Client, image: Path) -> None:
    began_s = time.monotonic()
    disk = DiskConfig(target=str(image), vdev="vda")
    client.create(GuestConfig(name=GUEST, memory=96, disk=[disk], extra="tv.mount=/dev/vda:/mnt:ext4"))
    release = client.exec(GUEST, ["uname", "-sr"]).stdout.decode().strip()
    timeline.say(f"guest {GUEST!r} runs {release}, ready {1000 * (time.monotonic() - began_s):.0f} ms after tv create")


def _write_under_fire(timeline: Timeline, client: Client) -> tuple[Written, list[Strike]]:
    writer = Writer(client, GUEST)
    writer.start()
    if not writer.started.wait(10):
        raise TimeoutError("the writer in the guest did not start")
    timeline.say("a writer appends records of 4 KiB, each on the disk before it is acknowledged")
    strikes = []
    for fault in FAULTS:
        time.sleep(PAUSE_S)
        timeline.say(f"{fault.name}: {fault.says}", "yellow")
        struck = strike(client, fault)
        strikes.append(struck)
        ended = f"  generation {struck.died} ended ({struck.how}), {struck.followed} serves"
        timeline.say(f"{ended}; {writer.acknowledged:,} acknowledged")
    time.sleep(PAUSE_S)
    written = writer.stop()
    for struck in strikes:
        timeline.say(f"  the guest saw {struck.fault.name} as a pause of {outage_of(struck, written.outages):.1f} ms")
    timeline.say(f"writer stopped: {written.acknowledged:,} acknowledged, {written.io_errors} I/O errors")
    return written, strikes


def _reboot(timeline: Timeline, client: Client) -> None:
    timeline.say("the guest reboots")
    client.shutdown(GUEST, reboot=True, wait_s=REBOOT_S)
    deadline = time.monotonic() + REBOOT_S
    while time.monotonic() < deadline:
        try:
            if client.exec(GUEST, ["grep", "-q", " /mnt ", "/proc/mounts"]).status == 0:
                return
        except TvError:
            pass
        time.sleep(0.02)
    raise TimeoutError("the guest did not come back after its reboot: tv dmesg demo")


if __name__ == "__main__":
    sys.exit(main())
