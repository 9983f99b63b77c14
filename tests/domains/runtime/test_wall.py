"""What the import wall lets pass."""

import subprocess
import sys

import pytest

from domains.runtime.wall import Wall, WallError, allowed_to
from tests.domains.runtime.stand_in import ROOT

ROLES = ("domains.dom0.main", "domains.guests.main", "domains.frontends.blkfront", "drivers.blkback.main")


@pytest.mark.parametrize(
    ("role", "module", "passes"),
    [
        ("drivers.blkback.main", "kernel.abi.ids", True),
        ("drivers.blkback.main", "kernel", True),
        ("drivers.blkback.main", "domains.runtime.jail", True),
        ("drivers.blkback.main", "drivers.blkback.loop", True),
        ("drivers.blkback.main", "drivers.netback", False),
        ("drivers.blkback.main", "domains.virtio.queue", False),
        ("drivers.blkback.main", "kernel.core", False),
        ("drivers.blkback.main", "kernel.boot", False),
        ("drivers.blkback.main", "kernel.abix", False),
        ("domains.guests.main", "domains.virtio.queue", True),
        ("domains.guests.main", "domains.frontends.blkfront", True),
        ("domains.guests.main", "domains.dom0", False),
        ("domains.guests.main", "drivers.blkback", False),
        ("domains.dom0.main", "domains.dom0.toolstack", True),
        ("domains.dom0.main", "domains.guests", False),
        ("domains.dom0.main", "triovisor", False),
        ("domains.frontends.x", "domains.virtio.blk", True),
        ("domains.virtio.x", "domains.frontends", False),
    ],
)
def test_a_role_passes_to_what_the_layout_lets_it_see(role, module, passes):
    assert Wall(role, allowed_to(role)).lets_pass(module) is passes


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("module", ["json.tool", "trio", "msgspec.json", "kernelabi"])
def test_the_wall_does_not_mind_what_is_not_ours(role, module):
    assert Wall(role, allowed_to(role)).find_spec(module, None) is None


def test_the_wall_says_who_asked_for_what():
    with pytest.raises(WallError, match=r"drivers.blkback.main may not import kernel.core"):
        Wall("drivers.blkback.main", allowed_to("drivers.blkback.main")).find_spec("kernel.core", None)


def test_an_import_behind_the_wall_fails_in_a_real_interpreter():
    wall = "from domains.runtime.wall import put_up; put_up('drivers.blkback.main')"
    code = f"{wall}; import kernel.abi.ids; import kernel.core"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip().endswith("drivers.blkback.main may not import kernel.core")
