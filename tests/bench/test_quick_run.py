"""A short run of the bench, for real. Its figures are not looked at."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.rows import GROUPS, Results
from kernel.doctor import require

ROOT = Path(__file__).parents[2]


def run_quickly(tmp_path, *groups):
    only = [word for group in groups for word in ("--only", group)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", *only, "--into", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "TRIOVISOR_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = msgspec.json.decode((tmp_path / "out" / "results.json").read_bytes(), type=Results)
    assert [row.name for row in results.rows] == [name for group in groups for name in GROUPS[group]]
    assert all(row.ours > 0 for row in results.rows if row.name != "crowd.hypervisor_per_domain")
    return results


def test_every_row_without_a_second_back_end_is_measured(tmp_path):
    run_quickly(tmp_path, "kills", "actor", "domain", "guest", "native", "message", "crowd")
    assert "| gap.kill.cold.p50 |" in (tmp_path / "out" / "RESULTS.md").read_text()


def test_every_row_of_the_block_path_is_measured_beside_the_peer(tmp_path):
    require("qemu-storage-daemon")
    assert all(row.ratio is not None for row in run_quickly(tmp_path, "block").rows)


def test_flame_graphs_are_made_of_the_block_path_and_of_the_hypervisor(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.profile", "--seconds", "2", "--domains", "40", "--into", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "TRIOVISOR_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    graphs = {name: (tmp_path / "out" / f"{name}.svg").read_text() for name in ("actor", "driver", "hypervisor")}
    assert "blkfront.py" in graphs["actor"]
    assert "blkback/loop.py" in graphs["driver"]
    assert "kernel/serving.py" in graphs["hypervisor"]
