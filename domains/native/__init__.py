"""What a native guest's program imports: `from domains.native import Domain`.

A program is one file with `async def main(domain: Domain) -> None`, started with `tv create` from a TOML with
`type = "native"`. It runs in a jail of its own: there is no file to open but those of Python, no socket, no other
process; what it can reach is what its domain was given.
"""

from domains.frontends.vbd import Switch, VbdStats
from domains.frontends.xenstore import Permission, Transaction, Watch, Xenstore
from domains.native.disk import SECTOR_BYTES, Disk
from domains.native.domain import Domain
from domains.native.event_channels import Doorbell, EventChannels, MessageChannel, PeerGone, Unbound
from domains.native.grants import Granted, Grants, Mapped
from kernel.abi.guest_config import ShutdownReason
from kernel.abi.hypercalls import Access
from kernel.abi.ids import ANY_GENERATION, DomId, Generation, Peer
from kernel.abi.status import DomainFault, Refused, Status

__all__ = [
    "ANY_GENERATION",
    "SECTOR_BYTES",
    "Access",
    "Disk",
    "DomId",
    "Domain",
    "DomainFault",
    "Doorbell",
    "EventChannels",
    "Generation",
    "Granted",
    "Grants",
    "Mapped",
    "MessageChannel",
    "Peer",
    "PeerGone",
    "Permission",
    "Refused",
    "ShutdownReason",
    "Status",
    "Switch",
    "Transaction",
    "Unbound",
    "VbdStats",
    "Watch",
    "Xenstore",
]
