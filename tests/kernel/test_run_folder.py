"""Run folders: locked while their hypervisor lives."""

import os

import pytest

from kernel.run_folder import RunFolderError, open_run_folder


def test_a_second_hypervisor_is_told_the_pid_of_the_first(tmp_path):
    run = open_run_folder(tmp_path / "run")
    with pytest.raises(RunFolderError, match=f"hypervisor {os.getpid()} runs here"):
        open_run_folder(tmp_path / "run")
    run.close()
    open_run_folder(tmp_path / "run").close()


def test_latest_points_to_the_last_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIOVISOR_RUNS", str(tmp_path))
    first, second = open_run_folder(None), open_run_folder(None)
    assert (tmp_path / "latest").resolve() == second.path
    assert first.path != second.path
    for run in (first, second):
        run.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="--run"):
        open_run_folder(tmp_path / "file" / "run")
