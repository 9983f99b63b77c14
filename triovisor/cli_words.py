"""Words that many verbs of `tv` take, with their completion, and what verbs that only act print for a script."""

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from triovisor.client import Client, TvError
from triovisor.printing import print_value

__all__ = ["Driver", "Json", "Name", "Names", "OptionalName", "complete_domain", "complete_driver", "done", "to_each"]

AT_ONCE = 16
"""Guests that are asked side by side. Dom0 serves 64 requests."""

GUESTS = ("pv", "native")
"""Kinds of domains that are guests."""


def complete_domain(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of domains, as far as a hypervisor answers."""
    return _names(ctx, incomplete, lambda client: (domain.name for domain in client.list()))


def complete_driver(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of driver domains."""
    return _names(ctx, incomplete, lambda client: (driver.name for driver in client.drivers()))


def _names(ctx: typer.Context, incomplete: str, ask: Callable[[Client], Iterable[str]]) -> list[str]:
    root = ctx.find_root()
    try:
        return [name for name in ask(root.obj or Client(root.params.get("run"))) if name.startswith(incomplete)]
    except TvError:
        return []


_DOMAIN_HELP = "A domain, by its name or its domid."

Name = Annotated[str, typer.Argument(metavar="NAME", help=_DOMAIN_HELP, autocompletion=complete_domain)]
OptionalName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help=_DOMAIN_HELP, autocompletion=complete_domain)
]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help=_DOMAIN_HELP, autocompletion=complete_domain)
]
Driver = Annotated[
    str, typer.Argument(metavar="DRIVER", help="As tv driver list names it.", autocompletion=complete_driver)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def done(json: bool, verb: str, **about: object) -> None:
    """A verb that acts has done so: nothing for a person, as with xl; an object for a script."""
    if json:
        print_value({"done": verb, **about}, str, True)


def to_each(names: list[str], act: Callable[[str], None]) -> list[TvError]:
    """Do it to all of them side by side. What failed. Ctrl-C waits for none of them."""
    import threading

    gate, errors = threading.Semaphore(AT_ONCE), dict[str, TvError]()

    def attempt(name: str) -> None:
        with gate:
            try:
                act(name)
            except TvError as error:
                errors[name] = error

    threads = [threading.Thread(target=attempt, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [errors[name] for name in names if name in errors]
