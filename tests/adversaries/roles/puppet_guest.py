"""The role of a guest; but one whose name begins with `puppet` does nothing of its own: the test holds its strings."""

import trio

from domains.guests import main as honest
from domains.runtime.domain import Domain

__all__ = ["main", "prepare"]

prepare = honest.prepare


async def main(domain: Domain) -> None:
    """Run the guest; or say which descriptors the test may copy, then sit still."""
    if not domain.name.startswith("puppet"):
        await honest.main(domain)
        return
    control, log = domain.descriptors["control"], domain.descriptors["log"]
    domain.log.info("puppet.ready", control=control, log=log)
    await domain.started()
    await trio.sleep_forever()
