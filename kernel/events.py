"""Waiting for one of several things."""

import trio

__all__ = ["wait_any"]


async def wait_any(*events: trio.Event) -> None:
    """Return when the first of them has come."""
    async with trio.open_nursery() as nursery:

        async def first(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(first, event)
