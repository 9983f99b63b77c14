"""A vbd to try things on."""

import pytest

from tests.domains.frontends.stand import Stand


@pytest.fixture
def stand():
    made = Stand()
    yield made
    made.close()
