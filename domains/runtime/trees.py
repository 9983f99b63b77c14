"""Which of the host's folders and files an interpreter needs in order to run."""

import os
import sys
import sysconfig
from collections.abc import Iterable

__all__ = ["interpreter_trees", "minimal_cover", "project_trees"]

_SYSTEM_PREFIXES = ("/", "/usr", "/usr/local")
"""A prefix of these is the whole system, so only the library folders below it are taken."""

_PROJECT_PACKAGES = ("kernel", "domains", "drivers")


def interpreter_trees() -> list[str]:
    """Python's own files, its packages, the C library and what extension modules link to."""
    trees = {"/usr/lib", *(path for path in ("/lib", "/lib64", "/usr/lib64") if not os.path.islink(path))}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}:
        trees.add(prefix if prefix not in _SYSTEM_PREFIXES else os.path.join(prefix, "lib"))
    trees.update(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    trees.add(os.path.realpath(sys.executable))
    return minimal_cover(trees)


def project_trees() -> list[str]:
    """The packages that a domain may need, each alone: what lies beside them in a checkout is nobody's business."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [os.path.join(root, package) for package in _PROJECT_PACKAGES]


def minimal_cover(paths: Iterable[str]) -> list[str]:
    """The existing paths, each also as what its links lead to, without those that lie under another, in order."""
    existing = [os.path.abspath(path) for path in paths if os.path.exists(path)]
    cover: list[str] = []
    for path in sorted({*existing, *map(os.path.realpath, existing)}):
        if not cover or not path.startswith(cover[-1].rstrip("/") + "/"):
            cover.append(path)
    return cover
