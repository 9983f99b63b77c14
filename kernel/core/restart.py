"""When a dead incarnation is followed by another: the first at once, the next after a back-off, then never
(MINIX 3 RS)."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["Decision", "GiveUp", "RestartAfter", "RestartPolicy", "decide"]


class RestartPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """As the boot manifest has it. Times in seconds.

    `free_deaths` in a window are followed at once; each further one waits `backoff_s`, doubled each time up to
    `backoff_cap_s`. With `max_deaths` in `window_s` the domain is given up.
    """

    free_deaths: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    backoff_s: Annotated[float, Meta(ge=0, le=60)] = 0.05
    backoff_cap_s: Annotated[float, Meta(ge=0, le=600)] = 2.0
    max_deaths: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    window_s: Annotated[float, Meta(gt=0, le=86400)] = 10.0


class RestartAfter(Struct, frozen=True):
    """Clone a successor after so many seconds; 0 is at once."""

    delay_s: float


class GiveUp(Struct, frozen=True):
    """Leave it dead, and say so loudly."""

    deaths: int
    window_s: float


Decision = RestartAfter | GiveUp


def decide(policy: RestartPolicy, deaths_s: Sequence[float]) -> Decision:
    """What follows the last of `deaths_s`, the times of all deaths in seconds, oldest first."""
    recent = sum(1 for death in deaths_s if death > deaths_s[-1] - policy.window_s)
    if recent >= policy.max_deaths:
        return GiveUp(recent, policy.window_s)
    paid = recent - policy.free_deaths
    if paid <= 0:
        return RestartAfter(0.0)
    return RestartAfter(min(policy.backoff_cap_s, policy.backoff_s * 2.0 ** min(paid - 1, 30)))
