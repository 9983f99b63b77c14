"""Which paths go into a template."""

import os
import sys

import trio  # noqa: F401

from domains.runtime.trees import interpreter_trees, minimal_cover, project_trees


def test_a_path_under_another_is_left_out(tmp_path):
    for name in ("a/b/c", "ab", "d"):
        (tmp_path / name).mkdir(parents=True)
    paths = [tmp_path / "a/b", tmp_path / "a", tmp_path / "ab", tmp_path / "a/b/c", tmp_path / "missing"]
    assert minimal_cover(map(str, paths)) == [str(tmp_path / "a"), str(tmp_path / "ab")]


def test_a_link_is_taken_with_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert minimal_cover([str(tmp_path / "link")]) == [str(tmp_path / "link"), str(tmp_path / "real")]


def test_an_interpreter_needs_neither_home_nor_the_whole_system():
    assert not {"/", "/usr", "/usr/local", "/home", "/root", "/etc"} & set(interpreter_trees())


def test_everything_imported_here_lies_in_the_trees():
    trees = (*interpreter_trees(), *project_trees())
    files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("trio.")]
    assert files
    assert all(os.path.realpath(file).startswith(trees) for file in files if file)
