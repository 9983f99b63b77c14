"""What follows the end of a guest, by its `on_*` settings, and the guard against one that ends again and again."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kernel.abi.guest_config import Action, ShutdownReason
from kernel.core.restart import GiveUp, RestartAfter, RestartPolicy, decide

__all__ = ["Following", "Then", "follow", "free_name"]

MAX_NAME = 64
"""Of `ids.Name`."""


class Then(Enum):
    """What becomes of the guest."""

    REMOVED = "removed"
    KEPT = "kept"
    RESTARTED = "restarted"
    RENAMED = "renamed"
    """It is kept under another name, and a new guest takes its place."""
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Following:
    """`delay_s`: before a restart. `ends_s`: the ends of this kind that still count for the next one."""

    then: Then
    ends_s: tuple[float, ...]
    delay_s: float = 0.0


_THEN = {
    Action.DESTROY: Then.REMOVED,
    Action.COREDUMP_DESTROY: Then.REMOVED,
    Action.PRESERVE: Then.KEPT,
    Action.RESTART: Then.RESTARTED,
    Action.COREDUMP_RESTART: Then.RESTARTED,
    Action.RENAME_RESTART: Then.RENAMED,
}


def follow(
    action: Action, reason: ShutdownReason, policy: RestartPolicy, ends_s: Sequence[float], now_s: float
) -> Following:
    """What follows an end at `now_s`; `ends_s`: those before it, of reboots where this is one, else of all others.

    A guest that is restarted waits longer from time to time. Too often in a window of the policy's it is given up; but
    not for a reboot, which is its own wish, and only waits.
    """
    then = _THEN[action]
    if then in (Then.REMOVED, Then.KEPT):
        return Following(then, tuple(ends_s))
    ends_s = (*(end for end in ends_s if end > now_s - policy.window_s), now_s)
    match decide(policy, ends_s):
        case RestartAfter(delay_s=delay_s):
            return Following(then, ends_s, delay_s)
        case GiveUp() if reason is ShutdownReason.REBOOT:
            return Following(then, ends_s, policy.backoff_cap_s)
    return Following(Then.GIVEN_UP, ends_s)


def free_name(name: str, generation: int, taken: Sequence[str]) -> str:
    """For a guest that is kept beside its successor: its own name, cut where it is long, with a number that tells which
    one it was."""
    number = generation
    while (found := f"{name[: MAX_NAME - len(f'-{number}')]}-{number}") in taken:
        number += 1
    return found
