"""The data loop: one thread with its own epoll beside Trio, for rings. Plain calls, no await.

Trio hosts decisions and control; a ring under Trio was measured to lose a third to a half of its speed. Other threads
speak to the loop by `submit`; what the loop calls back runs on its thread and must hand over.
"""

import os
import select
import threading
import traceback
from collections import deque
from collections.abc import Callable
from os import sched_yield
from time import monotonic
from typing import NoReturn, Protocol

__all__ = ["DataLoop"]

Handler = Callable[[], None]

_MAX_EVENTS = 64
"""Taken from epoll at once; the rest comes with the next turn."""
_ROUNDS = 64
"""Rounds of the rings before descriptors are looked at again."""
LINGER_S = 150e-6
"""How long the rings are looked at before the loop sleeps. A guest that waits for each request was measured to need
110 µs from an answer to its next request; a sleep and a wake-up across CPUs cost 50 µs."""
_MAX_MISSES = 6
"""Each time that nothing came doubles how many sleeps begin at once, up to 2 to this power: idle guests are free."""
_CRASHED = 70
"""EX_SOFTWARE, `sysexits.h`."""


def _die(error: BaseException) -> NoReturn:
    """A loop that broke its own invariant ends the process: without it everything else would only look alive."""
    traceback.print_exception(error)
    os._exit(_CRASHED)


class Rings(Protocol):
    """The rings that a loop serves, beside the descriptors that it watches."""

    def serve(self) -> bool:
        """Do a bounded part of what there is to do. False when there was nothing."""

    def park(self) -> float | None:
        """Ask every peer to ring when there is something. Seconds to sleep at most; 0: something has come."""


class DataLoop:
    """A thread that serves rings and waits for descriptors. Handlers bound their work, for all others wait.

    Before it sleeps the loop lingers: it looks at its rings for a little longer, giving way to other threads, and does
    not ask to be rung. That saves a sleep and two wake-ups on the way of every request of a guest that waits for each.
    """

    def __init__(self, name: str, rings: Rings, *, on_crash: Callable[[BaseException], None] = _die) -> None:
        """`name` is the thread's. `on_crash` gets what a handler raised, when the loop has ended because of it."""
        self.turns = 0
        self._rings = rings
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._commands: deque[Handler] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wakeable = threading.Lock()
        self._stopping = False
        self._misses = self._skips = 0
        self._on_crash = on_crash
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.watch(self._wake, self._obey)

    def start(self) -> None:
        """Begin to turn."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop after its present turn, and wait for that. What it watched is the owner's to close."""
        self.submit(self._stop)
        if self._thread.ident is not None:
            self._thread.join()
        self._epoll.close()
        with self._wakeable:
            os.close(self._wake)
            self._wake = -1

    def _stop(self) -> None:
        self._stopping = True

    def submit(self, command: Handler) -> None:
        """Have `command` called on the loop's thread, after those submitted before; never, once it has stopped.

        From any thread.
        """
        self._commands.append(command)
        self.wake()

    def wake(self) -> None:
        """Make the loop turn. From any thread; nothing once it has stopped."""
        with self._wakeable:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def watch(self, descriptor: int, handler: Handler, *, edge: bool = False) -> None:
        """Call `handler` when the descriptor is readable or hung up; with `edge`, once for each write, nothing drained.

        Raises OSError for a descriptor that cannot be waited for. On the loop's thread, or before it starts.
        """
        self._epoll.register(descriptor, select.EPOLLIN | (select.EPOLLET if edge else 0))
        self._handlers[descriptor] = handler

    def await_room(self, descriptor: int, wanted: bool) -> None:
        """Have a descriptor that is watched with `edge` call its handler when it takes output again, too; or no more.

        On the loop's thread.
        """
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLET | (select.EPOLLOUT if wanted else 0))

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, before it is closed. On the loop's thread, or when it has stopped."""
        if self._handlers.pop(descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    def _obey(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._commands)):
            self._commands.popleft()()

    def _run(self) -> None:
        try:
            self._turn_until_stopped()
        except BaseException as error:
            self._on_crash(error)

    def _turn_until_stopped(self) -> None:
        poll, handlers = self._epoll.poll, self._handlers
        while not self._stopping:
            timeout_s = 0 if self._linger() else self._rings.park()
            for descriptor, _ in poll(timeout_s, _MAX_EVENTS):
                handler = handlers.get(descriptor)
                if handler is not None:
                    handler()
            self.turns += 1

    def _linger(self) -> bool:
        """Serve the rings until nothing has come for a while, or others must have their turn: True then."""
        serve = self._rings.serve
        for _ in range(_ROUNDS):
            if serve():
                self._misses = 0
                continue
            if self._skips:
                self._skips -= 1
                return False
            until_s = monotonic() + LINGER_S
            while not serve():
                if self._commands:
                    return True
                if monotonic() > until_s:
                    self._misses = min(self._misses + 1, _MAX_MISSES)
                    self._skips = (1 << self._misses) - 1
                    return False
                sched_yield()
            self._misses = 0
        return True
