"""What a host needs before a guest can run: system packages, the guest's programs, its initramfs, disk images.

`python -m triovisor.provision` brings it all; a second run finds it and does nothing.
"""

from triovisor.provision.files import GuestFiles, SetupError, guest_files

__all__ = ["GuestFiles", "SetupError", "guest_files"]
