"""What follows a guest's end, and when it is given up."""

import pytest

from kernel.abi.guest_config import Action, GuestConfig, ShutdownReason
from kernel.core.endings import Following, Then, follow, free_name
from kernel.core.restart import RestartPolicy

POLICY = RestartPolicy(free_deaths=1, backoff_s=1.0, backoff_cap_s=3.0, max_deaths=4, window_s=60.0)
RESTARTING = (Action.RESTART, Action.RENAME_RESTART, Action.COREDUMP_RESTART)


@pytest.mark.parametrize(
    ("action", "then"),
    [
        (Action.DESTROY, Then.REMOVED),
        (Action.COREDUMP_DESTROY, Then.REMOVED),
        (Action.PRESERVE, Then.KEPT),
        (Action.RESTART, Then.RESTARTED),
        (Action.COREDUMP_RESTART, Then.RESTARTED),
        (Action.RENAME_RESTART, Then.RENAMED),
    ],
)
def test_each_action_has_what_follows_it(action, then):
    assert follow(action, ShutdownReason.CRASH, POLICY, (), 5.0).then is then


def test_every_action_is_known():
    assert {action for action in Action if follow(action, ShutdownReason.CRASH, POLICY, (), 0.0)} == set(Action)


@pytest.mark.parametrize("action", RESTARTING)
@pytest.mark.parametrize("reason", [ShutdownReason.CRASH, ShutdownReason.POWEROFF])
def test_a_guest_that_ends_again_and_again_waits_longer_and_is_given_up(action, reason):
    ends: tuple[float, ...] = ()
    delays = []
    for now in (10.0, 11.0, 12.0):
        following = follow(action, reason, POLICY, ends, now)
        ends = following.ends_s
        delays.append(following.delay_s)
    assert delays == [0.0, 1.0, 2.0]
    assert follow(action, reason, POLICY, ends, 13.0) == Following(Then.GIVEN_UP, (*ends, 13.0))


def test_a_guest_that_reboots_again_and_again_only_waits():
    ends = tuple(float(second) for second in range(50))
    following = follow(Action.RESTART, ShutdownReason.REBOOT, POLICY, ends, 50.0)
    assert (following.then, following.delay_s) == (Then.RESTARTED, POLICY.backoff_cap_s)


def test_ends_outside_the_window_are_forgotten():
    following = follow(Action.RESTART, ShutdownReason.CRASH, POLICY, (1.0, 2.0, 3.0), 70.0)
    assert following == Following(Then.RESTARTED, (70.0,), 0.0)


@pytest.mark.parametrize(
    ("reason", "action"),
    [
        (ShutdownReason.POWEROFF, Action.PRESERVE),
        (ShutdownReason.REBOOT, Action.RESTART),
        (ShutdownReason.CRASH, Action.COREDUMP_DESTROY),
        (ShutdownReason.WATCHDOG, Action.COREDUMP_DESTROY),
    ],
)
def test_a_reason_has_the_setting_that_xl_has_for_it(reason, action):
    config = GuestConfig(name="g", on_poweroff=Action.PRESERVE, on_crash=Action.COREDUMP_DESTROY)
    assert config.follows(reason) is action


def test_only_the_actions_of_that_name_dump_a_core():
    assert {action for action in Action if action.dumps} == {Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART}


def test_a_kept_guest_gets_a_free_name_that_is_not_too_long():
    assert free_name("web", 3, ["web", "db"]) == "web-3"
    assert free_name("web", 3, ["web", "web-3", "web-4"]) == "web-5"
    assert free_name("w" * 64, 10, []) == "w" * 61 + "-10"
