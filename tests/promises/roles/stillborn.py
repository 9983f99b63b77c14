"""The block driver, but each of its first incarnations ends before it has said a word.

Options of the manifest: `generations`, how many do.
"""

import os

import msgspec

from domains.runtime.domain import Domain
from drivers.blkback.main import main as serve
from kernel.abi.roles import DriverStart

__all__ = ["main"]


async def main(domain: Domain) -> None:
    """As `drivers.blkback.main.main`, or not at all."""
    options = msgspec.msgpack.decode(domain.config, type=DriverStart).options
    if domain.peer.generation <= int(options["generations"]):
        os._exit(3)
    await serve(domain)
