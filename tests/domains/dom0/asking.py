"""Calls of the blocking client, beside the service that answers them in the same process."""

from functools import partial

import pytest
import trio

from triovisor.client import TvError


async def ask(call, *arguments, **named):
    """A blocking call of the client, beside the service that answers it."""
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(partial(call, *arguments, **named), abandon_on_cancel=True)


async def refused(call, *arguments, **named) -> TvError:
    with pytest.raises(TvError) as caught:
        await ask(call, *arguments, **named)
    assert "\n" not in caught.value.why
    return caught.value


async def until(condition) -> None:
    """Wait for something that only shows."""
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.01)
