"""`tv console`: the verb around `triovisor.console`."""

import os
import sys

from kernel.abi.guest_io import Stream
from kernel.abi.status import Status
from triovisor.client import Client, TvError
from triovisor.console import End, Settings, show_console
from triovisor.printing import write_all

__all__ = ["attach"]


def attach(client: Client, name: str, *, steal: bool = False, watch: bool = False) -> None:
    """Show a guest's console until it or somebody ends that; then this process ends, with its status."""

    def say(line: str) -> None:
        os.write(2, f"\r\ntv: {line}\r\n".encode() if sys.stdin and sys.stdin.isatty() else f"tv: {line}\n".encode())

    settings = Settings(name, steal, watch, lambda data: write_all(Stream.STDOUT, data), say)
    try:
        ended = show_console(client, settings)
    except TvError as error:
        print(f"tv: {error}", file=sys.stderr)
        raise SystemExit(End.NOT_RUNNING if error.status is Status.EHOSTDOWN else End.REFUSED) from None
    print(f"tv: {ended.why}", file=sys.stderr)
    raise SystemExit(ended.end)
