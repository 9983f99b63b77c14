"""Verbs of `tv` that change a guest: from `create` to `destroy`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from triovisor.cli_words import GUESTS, Json, Name, OptionalName, done, to_each
from triovisor.client import Client, TvError
from triovisor.printing import print_value

__all__ = ["add_life"]

_WAIT_HELP = "Return when it has ended; after a reboot, when it runs again."
_KEYS_HELP = "KEY=VALUE of the TOML in the place of what FILE says, such as memory=128."

File = Annotated[Path, typer.Argument(metavar="FILE", help="The guest's TOML.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_KEYS_HELP)]
All = Annotated[bool, typer.Option("-a", "--all", help="All guests that run.")]
Wait = Annotated[bool, typer.Option("-w", "--wait", help=_WAIT_HELP)]
Timeout = Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds to wait at most.")]


def add_life(app: typer.Typer) -> None:
    """Give `app` these verbs."""
    verb = app.command
    verb(epilog="For example: tv create web.toml memory=128 name=web2")(create)
    verb("config-update", epilog="For example: tv config-update web web.toml memory=128; tv reboot web")(config_update)
    verb(epilog="For example: tv shutdown -w web")(shutdown)
    verb(epilog="For example: tv reboot -w web")(reboot)
    verb(epilog="For example: tv destroy web")(destroy)
    verb(epilog="For example: tv pause web")(pause)
    verb(epilog="For example: tv unpause web")(unpause)
    verb(epilog="For example: tv rename web old-web")(rename)
    verb(epilog="For example: tv sysrq web m; tv dmesg web")(sysrq)
    verb(epilog="For example: tv trigger web reset")(trigger)
    verb("dump-core", epilog="For example: tv dump-core web web.core; gdb linux.uml web.core")(dump_core)


def create(
    ctx: typer.Context,
    file: File,
    keys: Keys = None,
    console: Annotated[bool, typer.Option("-c", "--console", help="Attach its console on this terminal.")] = False,
    paused: Annotated[bool, typer.Option("-p", "--paused", help="Have it stand still, until tv unpause.")] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dryrun", help="Only read FILE, and print what it says.")] = False,
    json: Json = False,
) -> None:
    """Create a guest from its TOML file, and start it."""
    from triovisor.config import load

    config = load(file, keys or [])
    if dry_run:
        return print_value(config, str, True)
    domid = ctx.obj.create(config, paused=paused)
    print_value(
        {"name": config.name, "domid": domid}, lambda made: f"created {made['name']}, domid {made['domid']}", json
    )
    if console:
        from triovisor.cli_console import attach

        sys.stdout.flush()
        attach(ctx.obj, config.name)


def config_update(ctx: typer.Context, name: Name, file: File, keys: Keys = None, json: Json = False) -> None:
    """Have a guest be what FILE says from its next start on. What runs is not touched."""
    from triovisor.config import load

    ctx.obj.update_config(name, load(file, keys or []))
    done(json, "config-update", name=name)


def shutdown(
    ctx: typer.Context,
    name: OptionalName = None,
    all_: All = False,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Ask a guest to power off."""
    _ask_to_end(ctx.obj, name, all_, reboot=False, wait_s=timeout if wait else 0.0)
    done(json, "shutdown", name=name, all=all_)


def reboot(
    ctx: typer.Context,
    name: OptionalName = None,
    all_: All = False,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Ask a guest to reboot. It keeps its domid and its disks."""
    _ask_to_end(ctx.obj, name, all_, reboot=True, wait_s=timeout if wait else 0.0)
    done(json, "reboot", name=name, all=all_)


def _ask_to_end(client: Client, name: str | None, every: bool, *, reboot: bool, wait_s: float) -> None:
    if (name is None) is not every:
        raise typer.BadParameter("name one guest, or give -a for all of them")
    names = [name] if name is not None else _running(client)
    failed = to_each(names, lambda each: client.shutdown(each, reboot=reboot, wait_s=wait_s))
    for error in failed[:-1]:
        print(f"tv: {error}", file=sys.stderr)
    if failed:
        raise failed[-1]


def _running(client: Client) -> list[str]:
    ended = ("shutdown", "crashed", "given-up", "dead")
    return [domain.name for domain in client.list() if domain.kind in GUESTS and domain.state.value not in ended]


def destroy(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """End a guest at once, as pulling its plug does."""
    ctx.obj.destroy(name)
    done(json, "destroy", name=name)


def pause(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Have a guest stand still, until tv unpause."""
    ctx.obj.pause(name)
    done(json, "pause", name=name)


def unpause(ctx: typer.Context, name: Name, json: Json = False) -> None:
    """Have a paused guest go on."""
    ctx.obj.unpause(name)
    done(json, "unpause", name=name)


def rename(
    ctx: typer.Context, name: Name, new: Annotated[str, typer.Argument(metavar="NEW-NAME")], json: Json = False
) -> None:
    """Give a guest another name. It runs on; its hostname is another from its next start on."""
    ctx.obj.rename(name, new)
    done(json, "rename", name=new, before=name)


def sysrq(
    ctx: typer.Context,
    name: Name,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Such as m, memory; t, tasks; h, all keys.")],
    json: Json = False,
) -> None:
    """Tell a guest's kernel a key of Magic SysRq. What it says is on its console."""
    ctx.obj.sysrq(name, key)
    done(json, "sysrq", name=name, key=key)


_ABSENT_TRIGGERS = {
    "nmi": "a guest of processes gets no interrupt that cannot be masked: tv sysrq NAME l shows where its CPU is",
    "init": "there is no firmware to start from: tv trigger NAME reset starts its kernel anew",
    "sleep": "it cannot suspend to memory: tv pause NAME has it stand still",
    "s3resume": "it cannot suspend to memory: tv unpause NAME has it go on",
}


def trigger(
    ctx: typer.Context,
    name: Name,
    button: Annotated[str, typer.Argument(metavar="power|reset", help="The button of its machine.")],
    json: Json = False,
) -> None:
    """Press a button of a guest's: power asks it to power off, reset ends it at once and starts it anew."""
    if button == "reset":
        ctx.obj.reset(name)
    elif button == "power":
        ctx.obj.shutdown(name)
    else:
        why = _ABSENT_TRIGGERS.get(button, "the buttons are power and reset").replace("NAME", name)
        raise TvError.invalid(f"no trigger {button!r} for guest {name}: {why}")
    done(json, "trigger", name=name, button=button)


def dump_core(
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Where it is to be moved to.")] = None,
    json: Json = False,
) -> None:
    """Write a guest's memory as an ELF core, into the run's folder or FILE. The guest goes on, unless it is paused."""
    core = ctx.obj.dump_core(name)
    path = core.path if file is None else _moved(core.path, file)
    print_value({"path": path, "bytes": core.bytes}, lambda made: f"{made['path']}, {made['bytes']} bytes", json)


def _moved(path: str, file: Path) -> str:
    import shutil

    try:
        return str(shutil.move(path, file))
    except OSError as error:
        raise TvError.invalid(f"{file}: {error.strerror}: the core is at {path}") from error
