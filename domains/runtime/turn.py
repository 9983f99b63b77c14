"""Waiting, under Trio, for a data loop in another thread to turn."""

import contextlib
from collections.abc import Callable

import trio

__all__ = ["wait_turn"]


async def wait_turn(submit: Callable[[Callable[[], None]], None]) -> None:
    """Return once a loop has run a command given to its `submit`: then it is alive, and has done what came before."""
    turned = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def tell() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(turned.set)

    submit(tell)
    await turned.wait()
