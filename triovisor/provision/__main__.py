"""`python -m triovisor.provision [--check]`: bring what guests need, and say what was done."""

import argparse
import os
import sys

from kernel.abi.cache import cache_root
from triovisor.provision.files import SetupError, exit_status
from triovisor.provision.initramfs import build_initramfs
from triovisor.provision.lpj import provide_lpj
from triovisor.provision.packages import BASE, install_packages, missing_packages, unpack_missing
from triovisor.provision.programs import build_programs

__all__ = ["main"]

def main(arguments: list[str] | None = None) -> int:
    """0: everything is there. 1: something is not, and one line on stderr says what mends it. 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m triovisor.provision", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only look whether the packages are there")
    options = parser.parse_args(arguments)
    return exit_status("provision", lambda: provide(check=options.check))


def provide(*, check: bool) -> None:
    """All steps, in order; each says what it found or did. Raises SetupError at the first that cannot be done."""
    missing = missing_packages(BASE)
    names = " ".join(package.name for package in missing)
    if missing and check:
        raise SetupError(f"missing packages; run: apt-get install {names}")
    if missing and os.geteuid() == 0:
        _say("packages", f"installing {names}")
        install_packages(missing)
    elif missing:
        _say("packages", f"unpacking into {cache_root()}: {names}")
        unpack_missing(BASE)
    _say("packages", f"{len(BASE)} there, {len(missing)} of them new")
    if check:
        return
    programs, compiled = build_programs()
    _say("programs", f"{programs} {'compiled' if compiled else 'already there'}")
    initramfs, built = build_initramfs()
    _say("initramfs", f"{initramfs} ({initramfs.stat().st_size >> 10} KiB) {'built' if built else 'already there'}")
    lpj, measured = provide_lpj()
    _say("lpj", f"{lpj} {'measured' if measured else 'already known'}")


def _say(step: str, what: str) -> None:
    print(f"{step:10} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
