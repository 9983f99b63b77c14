"""A real Dom0 service on a hypervisor of the test's own."""

import pytest

from tests.domains.dom0.fake_hypervisor import running_dom0
from triovisor.client import Client


@pytest.fixture
async def hypervisor(tmp_path):
    async with running_dom0(tmp_path) as hypervisor:
        yield hypervisor


@pytest.fixture
def client(hypervisor):
    return Client(hypervisor.run)
