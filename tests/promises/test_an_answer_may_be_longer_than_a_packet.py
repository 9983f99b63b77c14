"""What the administrator asks for comes whole, however long it is: a packet of a control channel holds 64 KiB."""

import pytest

from tests.promises.lab import start_lab

PATH_BYTES = 2500


@pytest.fixture(scope="module")
def lab(run):
    with start_lab(run) as lab:
        yield lab


@pytest.fixture
def far_away(images):
    """Images whose paths are so long that sixteen of them fill half a packet, and thirty-two a whole one."""

    def make(name: str):
        image = images(name)
        folder = image.parent
        while len(str(folder)) < PATH_BYTES:
            folder /= "x" * 200
        folder.mkdir(parents=True, exist_ok=True)
        return image.rename(folder / image.name)

    return make


def test_every_disk_of_every_guest_is_told(lab, far_away):
    guests = {name: [far_away(f"{name}{number}") for number in range(16)] for name in ("one", "two")}
    for name, disks in guests.items():
        lab.create(name, *disks, memory=32)
    for name, disks in guests.items():
        assert [vbd.target for vbd in lab.client.info(name).vbds] == [str(disk) for disk in disks]
    told = {vbd.target for domain in lab.client.list() for vbd in domain.vbds}
    assert told == {str(disk) for disks in guests.values() for disk in disks}
    assert {vbd.target for vbd in lab.driver().vbds} == told
