"""kill -9 of the disk driver under verified load: nothing is lost, and the guest sees no error."""

import pytest

from tests.promises.lab import start_lab
from tests.promises.load import verified_load

KILLS = 200


@pytest.mark.parametrize("standby", [True, False], ids=["standby", "cold"])
def test_two_hundred_kills_of_the_serving_driver_under_load_lose_nothing(tmp_path, images, standby):
    with start_lab(tmp_path, standby=standby) as lab:
        lab.create("g", images(f"killed-{standby}", 32), memory=96)
        with verified_load(lab.client, "g", depth=32, span="16m") as load:
            deaths = [lab.watch.kill() for _ in range(KILLS)]
        assert {death["how"] for death in deaths} == {"killed by SIGKILL"}
        assert len({death["peer"] for death in deaths}) == KILLS
        assert load.report is not None
        assert load.report.operations > KILLS, "the load went on between the kills"
        assert lab.driver().restarts == KILLS
