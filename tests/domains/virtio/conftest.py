"""A guest driver for each test."""

import pytest

from tests.domains.virtio.guest_driver import GuestDriver


@pytest.fixture
def guest():
    driver = GuestDriver()
    yield driver
    driver.close()
