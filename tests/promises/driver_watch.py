"""Which incarnation of a driver serves, and whether all is as before a death: told by the hypervisor's log alone."""

import os
import signal
from collections import defaultdict
from collections.abc import Callable

from tests.promises.events import Event, EventLog, wait_until

__all__ = ["DriverWatch"]


class DriverWatch:
    """One driver domain. `handles` are the vbds that it serves; a test that adds or removes a guest sets them anew."""

    def __init__(self, log: EventLog, name: str, *, standby: bool) -> None:
        self.name = name
        self.handles: set[int] = set()
        self._pids: dict[str, int] = {}
        self._deaths: dict[str, Event] = {}
        self.active = ""
        self._log = log
        self._seen = 0
        self._standby = standby
        self._started: list[str] = []
        self._connected: defaultdict[str, set[int]] = defaultdict(set)

    def look(self) -> None:
        """Take in what the log has by now."""
        self._log.read()
        for event in self._log.events[self._seen :]:
            self._take(event)
        self._seen = len(self._log.events)

    def _take(self, event: Event) -> None:
        if event["event"] == "vbd.connected":
            self._connected[event["backend"]].add(event["handle"])
        if event.get("name") != self.name:
            return
        match event["event"]:
            case "domain.cloned":
                self._pids[event["peer"]] = event["pid"]
            case "domain.started":
                self._started.append(event["peer"])
            case "driver.activated":
                self.active = event["peer"]
            case "domain.died":
                self._deaths[event["peer"]] = event

    def pid_of(self, peer: str) -> int:
        """Its process, in the host's namespace; 0 for whoever is no incarnation of this driver."""
        self.look()
        return self._pids.get(peer, 0)

    def serving(self) -> str:
        """The active incarnation, if it serves every vbd and, where there is to be one, its standby could; else none.

        "7.3" is generation 3 of domain 7.
        """
        self.look()
        if not self._is_ready(self.active):
            return ""
        if self._standby and not self.standing_by():
            return ""
        return self.active

    def standing_by(self) -> str:
        """The standby, with its rings mapped; none where there is none."""
        return next((peer for peer in reversed(self._started) if peer != self.active and self._is_ready(peer)), "")

    def _is_ready(self, peer: str) -> bool:
        return peer in self._started and peer not in self._deaths and self.handles <= self._connected[peer]

    def wait_serving(self, other_than: str = "") -> str:
        """The active incarnation, once recovery is complete."""
        peer: str = wait_until(
            lambda: peer if (peer := self.serving()) != other_than else "",
            f"{self.name} serves {self.handles}, other than {other_than or 'none'}",
        )
        return peer

    def wait_death(self, peer: str) -> Event:
        """Its `domain.died`, once the log has it."""
        event: Event = wait_until(lambda: self.dead().get(peer), f"the death of {peer}")
        return event

    def dead(self) -> dict[str, Event]:
        """`domain.died` of each incarnation that is gone by now, in order."""
        self.look()
        return self._deaths

    def strike(self, act: Callable[[int], object]) -> Event:
        """Do something to the serving incarnation, given its pid, that is to be its end.

        Its `domain.died`, once its successor serves and recovery is complete.
        """
        before = self.wait_serving()
        act(self.pid_of(before))
        self.wait_serving(other_than=before)
        return self.wait_death(before)

    def kill(self) -> Event:
        """SIGKILL to the serving incarnation, and wait for the whole recovery."""
        return self.strike(lambda pid: os.kill(pid, signal.SIGKILL))
