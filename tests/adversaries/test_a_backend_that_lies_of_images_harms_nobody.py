"""A backend that is asked to look into an image: it may lie, be silent or die, and strangers may answer for it."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.abi.codec import encode
from kernel.abi.guest_config import DiskConfig, GuestConfig
from kernel.abi.hypercalls import ImageProbed
from kernel.abi.packet import close_all
from kernel.abi.status import Status
from kernel.abi.upcalls import ImageProbe
from tests.adversaries.lab import MANIFEST, Lab, start_lab
from tests.adversaries.puppet import Puppet
from triovisor.client import TvError

QCOW2_PUPPET = MANIFEST.replace(
    'role = "drivers.puppet.main"', 'role = "drivers.puppet.main"\nformat = "qcow2"\nprogram = "/bin/true"'
)
LIES = [
    (ImageProbed(0, why="it is bad"), "it is bad"),
    (ImageProbed(0, why="bad\x1b[2J\nworse"), "bad?[2J?worse"),
    (ImageProbed(0, size_bytes=1 << 40, backing="a\x1b[2J\n"), "stands on 'a?[2J?'"),
    (ImageProbed(0, size_bytes=0), "is a disk of 0 bytes"),
    (ImageProbed(0, size_bytes=1 << 40, backing="../../../etc/shadow"), "/etc/shadow' to the disk".replace("'", '"')),
    (ImageProbed(0, size_bytes=1 << 40, backing="json:{}"), "stands on 'json:{}'"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tree, images) -> Iterator[Lab]:
    with start_lab(tmp_path_factory.mktemp("run"), tree, images, QCOW2_PUPPET) as started:
        yield started


class Creation(threading.Thread):
    """An administrator who creates a guest on the puppet, and waits for the answer."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._client = lab.client
        disk = DiskConfig(target=str(lab.image()), vdev="vda", backend="puppet-driver", format="qcow2")
        self.image = Path(disk.target)
        self._config = GuestConfig(name="victim", memory=32, disk=[disk])
        self._refusal: TvError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._client.create(self._config)
        except TvError as error:
            self._refusal = error

    def refusal(self) -> TvError:
        self.join(40)
        assert self._refusal is not None
        assert "\n" not in self._refusal.why
        assert "victim" not in [domain.name for domain in self._client.list()]
        return self._refusal


def wait_probe(puppet: Puppet) -> tuple[int, list[int]]:
    """The number of the probe, and what it carries."""
    while True:
        messages, descriptors = puppet.receive()
        for message in messages:
            if isinstance(message, ImageProbe):
                return message.probe, descriptors
        close_all(descriptors)


@pytest.mark.parametrize(("lie", "why"), LIES)
def test_what_it_says_is_compared_and_nothing_is_opened_for_it(calm, lie, why):
    with calm.driver_puppet() as puppet:
        creation = Creation(calm)
        number, descriptors = wait_probe(puppet)
        puppet.send(encode([ImageProbed(number, lie.size_bytes, lie.backing, lie.why)]))
        refusal = creation.refusal()
        assert refusal.status is Status.EINVAL
        assert why in refusal.why
        close_all(descriptors)


def test_what_it_is_given_to_look_into_cannot_be_written(calm):
    with calm.driver_puppet() as puppet:
        creation = Creation(calm)
        number, (image,) = wait_probe(puppet)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.pwrite(image, b"x", 0)
        os.close(image)
        puppet.send(encode([ImageProbed(number, why="seen")]))
        creation.refusal()


def test_an_answer_to_another_question_or_by_another_is_none(calm):
    with calm.driver_puppet() as puppet:
        creation = Creation(calm)
        number, descriptors = wait_probe(puppet)
        close_all(descriptors)
        puppet.send(encode([ImageProbed(number + 1, why="wrong"), ImageProbed(0, why="wrong")]))
        puppet.send(encode([ImageProbed(number, why="right"), ImageProbed(number, why="late")]))
        assert "right" in creation.refusal().why


def test_a_guest_that_answers_for_a_backend_is_ended(calm):
    with calm.guest_puppet() as guest:
        guest.send(encode([ImageProbed(1, size_bytes=512)]))
        calm.wait_death(guest)


def test_when_it_dies_over_an_image_its_successor_is_asked_and_the_image_is_free_in_the_end(calm):
    with calm.driver_puppet() as puppet:
        creation = Creation(calm)
        close_all(wait_probe(puppet)[1])
        since = calm.log.mark()
        puppet.kill()
    with calm.driver_puppet(since) as successor:
        number, descriptors = wait_probe(successor)
        close_all(descriptors)
        successor.send(encode([ImageProbed(number, why="by the successor")]))
        assert "by the successor" in creation.refusal().why


def test_one_that_is_silent_keeps_the_administrator_waiting_for_a_while_alone(calm):
    with calm.driver_puppet() as puppet:
        creation = Creation(calm)
        close_all(wait_probe(puppet)[1])
        calm.check_innocents()
        refusal = creation.refusal()
        assert refusal.status is Status.ETIMEDOUT
        assert "puppet-driver told nothing of it for 15 s: see its log" in refusal.why
