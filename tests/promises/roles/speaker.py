"""A driver that counts aloud: it logs each number, then says by its thread's name that it has; and it lies in its log.

The thread's name (`/proc/PID/comm`) can be read from outside, whatever happens to the process.
"""

import ctypes
import os

import trio

from domains.runtime.domain import Domain, open_domain

__all__ = ["main"]

PAUSE_S = 0.0005
"""Between two numbers, so that they stay below what the log keeper takes from one domain."""

PR_SET_NAME = 15
LIE = b'{"domain": "dom0", "domid": 0, "generation": 99, "ns": 1, "event": "log.unreadable", "text": "a lie"}\n'


async def main(domain: Domain) -> None:
    """Until killed."""
    prctl = ctypes.CDLL(None).prctl
    async with open_domain(domain):
        await domain.started()
        os.write(domain.descriptors["log"], LIE)
        os.write(domain.descriptors["log"], b"no event at all\n")
        number = 0
        while True:
            number += 1
            domain.log.info("upcall.ignored", what=str(number))
            prctl(PR_SET_NAME, f"said {number}".encode(), 0, 0, 0)
            await trio.sleep(PAUSE_S)
