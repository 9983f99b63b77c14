"""What this hypervisor calls itself."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["ABI_VERSION", "VERSION"]

ABI_VERSION = 1
"""Grows when a message's meaning changes under an old number, which never happens without a new number."""


def _installed() -> str:
    try:
        return version("triovisor")
    except PackageNotFoundError:
        return "0+source"


VERSION = _installed()
