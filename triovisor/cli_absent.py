"""Verbs of `xl` that cannot exist here: each says so, and why, and what there is instead."""

from triovisor.connection import TvError

__all__ = ["ABSENT", "refuse_absent"]

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


def refuse_absent(verb: str) -> None:
    """Raise TvError (EINVAL) for one of them."""
    if verb in ABSENT:
        raise TvError.invalid(f"there is no {verb} here: {ABSENT[verb]}")
