"""The import wall: a role's process cannot import what the role may not see.

It stands before the project's own packages alone; the standard library and third parties pass. Names already in
`sys.modules` pass any wall, so it is put up in a zygote that has imported nothing but what every role may see.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["Wall", "WallError", "allowed_to", "put_up"]

OWN_PACKAGES = frozenset({"kernel", "domains", "drivers", "triovisor", "tests", "bench", "examples"})

_EVERY_ROLE = ("kernel.abi", "domains.runtime")
_FRONT = ("domains.virtio", "domains.frontends", "domains.native")
_BESIDES = {
    "domains.frontends": ("domains.virtio",),
    "domains.native": ("domains.virtio", "domains.frontends"),
    "domains.guests": _FRONT,
    "domains.dom0": _FRONT,
}


class WallError(ImportError):
    """A role asked for a module behind its wall: our bug, or a dependency in the wrong place."""


def allowed_to(role: str) -> tuple[str, ...]:
    """Prefixes of the project's modules that `role`, a module's name, may import: the layout's import rules."""
    own = ".".join(role.split(".")[:2]) if role.startswith(("domains.", "drivers.")) else role.rpartition(".")[0]
    return (*_EVERY_ROLE, *_BESIDES.get(own, ()), own or role)


class Wall(MetaPathFinder):
    """Refuses own modules outside `prefixes`; has no opinion on others."""

    def __init__(self, role: str, prefixes: Sequence[str]) -> None:
        self.role = role
        self.prefixes = tuple(prefixes)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Always None, so that the finders behind it go on. Raises WallError."""
        if fullname.partition(".")[0] in OWN_PACKAGES and not self.lets_pass(fullname):
            raise WallError(f"{self.role} may not import {fullname}", name=fullname)
        return None

    def lets_pass(self, fullname: str) -> bool:
        """Whether an own module is under one of the prefixes, or a package on the way to one."""
        return any(
            fullname == prefix or fullname.startswith(prefix + ".") or prefix.startswith(fullname + ".")
            for prefix in self.prefixes
        )


def put_up(role: str) -> None:
    """Put the wall of `role` up in this process, for good."""
    sys.meta_path.insert(0, Wall(role, allowed_to(role)))
