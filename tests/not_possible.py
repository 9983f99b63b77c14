"""No silent skip: what this host cannot have is counted and named at the end of a run."""

from typing import NoReturn

import pytest

__all__ = ["lacking", "not_possible"]

_MARK = "not possible here: "


def not_possible(what: str) -> NoReturn:
    """Skip the test that asks, since this host cannot have `what`."""
    pytest.skip(f"{_MARK}{what}")


def lacking(reasons: list[str]) -> list[str]:
    """What was not possible, of the reasons for which tests were skipped."""
    return [reason.partition(_MARK)[2] for reason in reasons if _MARK in reason]
