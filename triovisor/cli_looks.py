"""Verbs of `tv` that only look."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from kernel.abi.guest_config import DomainInfo
from kernel.abi.guest_io import Stream
from triovisor import render
from triovisor.cli_words import GUESTS, Json, Name, Names, OptionalName
from triovisor.client import Client, TvError
from triovisor.printing import print_table, print_value, write_all

__all__ = ["add_looks"]


def add_looks(app: typer.Typer) -> None:
    """Give `app` these verbs."""
    verb = app.command
    verb("list", epilog="For example: tv list; tv list -l web")(list_domains)
    verb(epilog="For example: tv info; tv info web --json")(info)
    verb(epilog="For example: tv domid web")(domid)
    verb(epilog="For example: tv domname 4")(domname)
    verb(epilog="For example: tv uptime web")(uptime)
    verb("vcpu-list", epilog="For example: tv vcpu-list web")(vcpu_list)
    verb("block-list", epilog="For example: tv block-list web")(block_list)
    verb(epilog="For example: tv dmesg web | tail")(dmesg)
    verb(epilog="For example: tv top -d 1; tv top --json -i 2")(top)


def list_domains(
    ctx: typer.Context,
    names: Names = None,
    long: Annotated[bool, typer.Option("-l", "--long", help="All that is known, as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="How the last incarnation ended, too.")] = False,
    json: Json = False,
) -> None:
    """List all domains, or those that are named. State: r running, b blocked, p paused, s shut down, c crashed, d
    dying."""
    if long:
        _print_long(_chosen(ctx.obj.list(long=True), names))
    else:
        text = render.domain_list_with_ends if verbose else render.domain_list
        print_value(_chosen(ctx.obj.list(), names), text, json)


def _print_long(domains: list[DomainInfo]) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(domains), indent=2).decode())


def _chosen(domains: list[DomainInfo], names: list[str] | None) -> list[DomainInfo]:
    """Those that are named, by name or domid, in that order; all where none is."""
    if not names:
        return domains
    found = {domain.name: domain for domain in reversed(domains)}
    by_domid = {str(domain.domid): domain for domain in domains}
    missing = [name for name in names if name not in found and name not in by_domid]
    if missing:
        raise TvError.unknown(f"there is no domain {missing[0]!r}: tv list shows all")
    return [found.get(name) or by_domid[name] for name in names]


def _guests(client: Client, names: list[str] | None) -> list[DomainInfo]:
    return [domain for domain in _chosen(client.list(), names) if names or domain.kind in GUESTS]


def info(ctx: typer.Context, name: OptionalName = None, json: Json = False) -> None:
    """Tell about a domain, or without NAME about the host and the hypervisor."""
    if name is None:
        print_value(ctx.obj.host(), render.pairs, json)
        return
    domain = ctx.obj.info(name)
    print_value(domain, render.domain_pairs, json)
    if domain.vbds and not json:
        print_table(render.vbd_table(domain.vbds))


def domid(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Print the domid of a name."""
    _print_one(ctx.obj, name, lambda domain: domain.domid, json)


def domname(
    ctx: typer.Context, domid: Annotated[int, typer.Argument(metavar="DOMID", min=0)], json: Json = False
) -> None:
    """Print the name of a domid."""
    domain = next((domain for domain in ctx.obj.list() if domain.domid == domid), None)
    if domain is None:
        raise TvError.unknown(f"there is no domain {domid}: tv list shows all")
    print_value(_identity(domain), lambda identity: identity["name"], json)


def _print_one(client: Client, name: str, which: Callable[[DomainInfo], object], json: bool) -> None:
    domain = client.info(name)
    print_value(_identity(domain), lambda _: str(which(domain)), json)


def _identity(domain: DomainInfo) -> dict[str, Any]:
    return {"name": domain.name, "domid": domain.domid}


def uptime(ctx: typer.Context, names: Names = None, json: Json = False) -> None:
    """Print for how long each domain has been up since its last start."""
    domains = _chosen(ctx.obj.list(), names)
    values = [{**_identity(domain), "uptime_s": domain.uptime_s} for domain in domains]
    print_value(values, lambda _: render.uptimes(domains), json)


def vcpu_list(ctx: typer.Context, names: Names = None, json: Json = False) -> None:
    """List the virtual CPUs of all domains, or of those that are named, and on which CPUs of the host they may run."""
    rows = render.vcpus(_chosen(ctx.obj.list(), names), ctx.obj.host()["nr_cpus"])
    print_value(rows, render.vcpu_list, json)


def block_list(ctx: typer.Context, names: Names = None, json: Json = False) -> None:
    """List the disks of all guests, or of those that are named."""
    domains = _guests(ctx.obj, names)
    if json:
        print_value([vbd for domain in domains for vbd in domain.vbds], str, True)
    else:
        print_table(render.block_table(domains))


def dmesg(
    ctx: typer.Context,
    name: OptionalName = None,
    raw: Annotated[bool, typer.Option("--raw", help="As it is, on a terminal too.")] = False,
    json: Json = False,
) -> None:
    """Print the last 256 KiB of a guest's console, or without NAME of the hypervisor's log. On a terminal control
    characters are made visible: what a guest writes must not steer it."""
    data = ctx.obj.dmesg(name)
    if json:
        return print_value({"name": name, "text": data.decode(errors="backslashreplace")}, str, True)
    harmless = raw or not (sys.stdout and sys.stdout.isatty())
    write_all(Stream.STDOUT, data if harmless else render.visible(data).encode())


def top(
    ctx: typer.Context,
    delay: Annotated[float, typer.Option("-d", "--delay", min=0.1, max=3600, help="Seconds between two looks.")] = 3.0,
    iterations: Annotated[
        int | None, typer.Option("-i", "--iterations", min=1, help="How often. Default: until q.")
    ] = None,
    batch: Annotated[bool, typer.Option("-b", "--batch", help="As --json: for a file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="No live screen: a line of JSON for each look.")] = False,
) -> None:
    """Show the domains and what they use, live. q ends it."""
    from triovisor.top import show_top

    show_top(ctx.obj, delay, iterations, batch or json, lambda data: write_all(Stream.STDOUT, data))
