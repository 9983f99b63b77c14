"""The guest's end of a vbd: its virtqueue, its memory, and how it is signalled."""

import os
from time import monotonic

from domains.virtio.queue import SplitQueue

__all__ = ["GuestEnd"]

LOOK_AGAIN_S = 0.001
"""How long a guest has to look at what it was given before it is signalled once more."""
PATIENCE, PATIENT_LOOK_S = 20, 0.05
"""After so many signals in a row the guest is busy rather than deaf."""

_ONE = (1).to_bytes(8, "little")


class GuestEnd:
    """A queue while the guest has one set up: `queue` and `view`, its memory, are valid together."""

    __slots__ = ("_call", "_nudges", "_signalled_at", "queue", "resignalled", "view")

    def __init__(self) -> None:
        self.queue: SplitQueue | None = None
        self.view = memoryview(b"")
        self.resignalled = 0
        self._call = -1
        self._nudges = 0
        self._signalled_at = 0.0

    def start(self, queue: SplitQueue, view: memoryview) -> None:
        """The guest has set up its queue in the memory `view`."""
        self.queue, self.view = queue, view

    def stop(self) -> None:
        """The guest's queue is gone."""
        self.queue, self.view = None, memoryview(b"")

    def set_call(self, descriptor: int) -> None:
        """Signal the guest through `descriptor` from now on, the caller's to close; -1: not at all."""
        self._call = descriptor

    def signal_if_wanted(self) -> None:
        """Tell the guest of what it was given, if it asks for that."""
        if self.queue is not None and self.queue.wants_signal():
            self._nudges = 0
            self.signal()

    def signal(self) -> None:
        """Have the guest look at its used ring."""
        self._signalled_at = monotonic()
        if self._call >= 0:
            try:
                os.write(self._call, _ONE)
            except OSError:
                return

    def nudge(self) -> float | None:
        """Signal a guest again that has not looked for a while; seconds until the next time, None when it has looked.

        User-Mode Linux can lose an interrupt on its way to idle.
        """
        if self.queue is None or not self.queue.unseen():
            return None
        wait_s = LOOK_AGAIN_S if self._nudges < PATIENCE else PATIENT_LOOK_S
        left_s = self._signalled_at + wait_s - monotonic()
        if left_s > 0:
            return left_s
        self._nudges += 1
        self.resignalled += 1
        self.signal()
        return wait_s
