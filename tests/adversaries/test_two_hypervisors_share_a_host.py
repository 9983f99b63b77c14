"""Two hypervisors on one host: what one holds the other is refused, by name; otherwise neither knows of the other."""

import pytest

from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.status import Status
from tests.adversaries.lab import INNOCENT, Lab, start_lab
from triovisor.client import TvError
from triovisor.lab import LabError, start_hypervisor


@pytest.fixture(scope="module")
def other(tmp_path_factory, tree, images):
    with start_lab(tmp_path_factory.mktemp("other"), tree, images) as started:
        yield started


def test_an_image_of_the_ones_guest_is_refused_to_the_others(calm: Lab, other: Lab):
    image = calm.image()
    config = GuestConfig(name="holder", memory=32, disk=[DiskConfig(target=str(image), vdev="vda")])
    calm.client.create(config)
    with pytest.raises(TvError) as refused:
        other.client.create(config)
    assert refused.value.status is Status.EBUSY
    assert str(image) in refused.value.why
    calm.client.destroy("holder")
    other.client.create(config)
    with pytest.raises(TvError) as refused:
        calm.client.create(config)
    assert refused.value.status is Status.EBUSY
    other.client.destroy("holder")


def test_guests_of_one_name_are_strangers(calm: Lab, other: Lab):
    assert calm.client.exec(INNOCENT, ["sh", "-c", "echo here > /tmp/where"]).status == 0
    assert other.client.exec(INNOCENT, ["cat", "/tmp/where"]).status != 0
    calm.check_innocents()
    other.check_innocents()


def test_a_run_folder_is_one_hypervisors_alone(calm: Lab):
    with pytest.raises(LabError, match=str(calm.pid)), start_hypervisor(calm.run):
        pass
