"""Zygotes for these tests, as root and as an ordinary user."""

import os
from collections.abc import Iterator

import pytest

from tests.domains.runtime.stand_in import Zygote, as_nobody, fork_role, start_base
from tests.not_possible import not_possible


@pytest.fixture(scope="session", params=["root", "ordinary user"])
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    """A role's zygote; each test of it runs for both kinds of user."""
    if request.param == "root" and os.geteuid() != 0:
        not_possible("a uid for each domain needs root")
    prefix = as_nobody() if request.param == "ordinary user" and os.geteuid() == 0 else ()
    base = start_base(prefix)
    role = fork_role(base)
    role.own_uids = request.param == "root"
    yield role
    role.close()
    base.close()
