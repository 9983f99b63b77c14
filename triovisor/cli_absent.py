"""Verbs of `xl` that cannot exist here: each says so, and why, and what there is instead."""

from collections.abc import Callable

import typer

from triovisor.connection import TvError

__all__ = ["ABSENT", "add_absent"]

_STATE = (
    "a guest here is Linux as processes, or a Python program, whose state cannot be taken out and put in elsewhere: "
    "tv pause NAME has it stand still, tv dump-core NAME writes its memory for a look"
)
_BUS = 'a guest of processes has no bus that a device of the host could be put on: give it a disk, target = "/dev/…"'
_MEMORY = "a guest's memory is what it was at its start: tv config-update NAME FILE memory=128, then tv reboot NAME"
_NO_SCREEN = "a guest has no screen and no sound: tv console NAME is its terminal"
_POLICY = "who may do what is one table here, kernel/core/privilege.py, and no policy to load"
_DISKS = "a guest's disks are those of its TOML for its life: tv destroy NAME, change FILE, tv create FILE"

ABSENT = {
    **dict.fromkeys(("save", "restore", "migrate", "migrate-receive", "remus"), _STATE),
    **dict.fromkeys(("pci-attach", "pci-detach", "pci-list", "pci-assignable-list", "pci-assignable-add"), _BUS),
    **dict.fromkeys(("usbctrl-attach", "usbctrl-detach", "usbdev-attach", "usbdev-detach", "usb-list"), _BUS),
    **dict.fromkeys(("vtpm-attach", "vtpm-detach", "vtpm-list"), _BUS),
    **dict.fromkeys(("mem-set", "mem-max"), _MEMORY),
    "vcpu-set": "User-Mode Linux runs on one CPU: have more guests",
    **dict.fromkeys(("vncviewer", "vdispl-list", "vsnd-list", "vkb-list"), _NO_SCREEN),
    **dict.fromkeys(("block-attach", "block-detach", "cd-insert", "cd-eject"), _DISKS),
    **dict.fromkeys(("loadpolicy", "getenforce", "setenforce"), _POLICY),
    "debug-keys": "the hypervisor is a Python program and has no keys: tv dmesg is its log, tv info its state",
}
"""Verb → why."""


def add_absent(app: typer.Typer) -> None:
    """Give `app` these verbs. They are not in its help."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    for verb, why in ABSENT.items():
        app.command(verb, hidden=True, context_settings=settings, add_help_option=False)(_refusing(verb, why))


def _refusing(verb: str, why: str) -> Callable[[], None]:
    def refuse() -> None:
        raise TvError.invalid(f"there is no {verb} here: {why}")

    return refuse
