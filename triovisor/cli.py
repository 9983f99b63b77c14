"""`tv`, the administrator's command."""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from kernel.abi.guest_io import Stream
from kernel.abi.status import Status
from triovisor import render
from triovisor.cli_image import image_app
from triovisor.client import Client, TvError
from triovisor.command import BytesSource, Command, DescriptorSource, exit_code, pump
from triovisor.disks import ConfigError
from triovisor.overlays import ImageError

__all__ = ["app", "main"]

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


class _Tv(TyperGroup):
    """Where every command's failure becomes one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
            return result
        except (TvError, ConfigError, ImageError) as error:
            print(f"tv: {error}", file=sys.stderr)
            raise SystemExit(EXIT_REFUSED) from None
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(EXIT_BROKEN_PIPE) from None


app = typer.Typer(
    cls=_Tv,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Administer a Triovisor hypervisor: its guests, its drivers, its logs.",
)
driver_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Driver domains.")
app.add_typer(driver_app, name="driver")
app.add_typer(image_app, name="image")

_RUN_HELP = "Run folder or admin socket. Default: $TRIOVISOR_RUN, or the latest run in $TRIOVISOR_RUNS or ./runs."
_WAIT_HELP = "Return when it has ended; after a reboot, when it runs again."

Name = Annotated[str, typer.Argument(metavar="NAME", help="A domain, as tv list names it.")]
Driver = Annotated[str, typer.Argument(metavar="DRIVER", help="A driver domain, as tv driver list names it.")]
OptionalName = Annotated[str | None, typer.Argument(metavar="[NAME]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.callback()
def _start(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Option(metavar="PATH", help=_RUN_HELP)] = None,
) -> None:
    ctx.obj = Client(run)


@app.command("list")
def list_domains(ctx: typer.Context, json: Json = False) -> None:
    """List all domains. State: r running, b blocked, p paused, s shut down, c crashed, d dying."""
    _print(ctx.obj.list(), render.domain_list, json)


@app.command()
def create(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The guest's TOML.")],
    json: Json = False,
) -> None:
    """Create a guest from its TOML file, and start it."""
    from triovisor.config import load

    config = load(file)
    domid = ctx.obj.create(config)
    _print({"name": config.name, "domid": domid}, lambda made: f"created {made['name']}, domid {made['domid']}", json)


@app.command()
def info(ctx: typer.Context, name: OptionalName = None, json: Json = False) -> None:
    """Tell about a domain, or without NAME about the host and the hypervisor."""
    if name is None:
        _print(ctx.obj.host(), render.pairs, json)
    else:
        domain = ctx.obj.info(name)
        _print(domain, render.domain_pairs, json)
        if domain.vbds and not json:
            _print_table(render.vbd_table(domain.vbds))


@app.command()
def shutdown(
    ctx: typer.Context,
    name: Name,
    reboot: Annotated[bool, typer.Option("--reboot", help="Reboot instead of power off.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help=_WAIT_HELP)] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds to wait at most.")] = 60.0,
) -> None:
    """Ask a guest to power off."""
    ctx.obj.shutdown(name, reboot=reboot, wait_s=timeout if wait else 0.0)


@app.command()
def destroy(ctx: typer.Context, name: Name) -> None:
    """End a guest at once, as pulling its plug does."""
    ctx.obj.destroy(name)


@app.command()
def pause(ctx: typer.Context, name: Name) -> None:
    """Have a guest stand still, until tv unpause."""
    ctx.obj.pause(name)


@app.command()
def unpause(ctx: typer.Context, name: Name) -> None:
    """Have a paused guest go on."""
    ctx.obj.unpause(name)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    ctx: typer.Context,
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.")],
    no_stdin: Annotated[bool, typer.Option("-n", "--no-stdin", help="Give the command no input.")] = False,
) -> None:
    """Run a command in a guest, with this one's streams. Exit status: the command's, 128 + its signal, or 125."""
    argv = command[1:] if command[0] == "--" else command
    with ctx.obj.command(name, argv) as running:
        _pass_interrupts_on(running)
        ended = pump(running, BytesSource(b"") if no_stdin else DescriptorSource(0), _write)
    if ended.why:
        print(f"tv: {ended.why}", file=sys.stderr)
    raise SystemExit(exit_code(ended))


@app.command()
def console(
    ctx: typer.Context,
    name: Name,
    steal: Annotated[bool, typer.Option("--steal", help="Take the keyboard from who has it.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Never type.")] = False,
) -> None:
    """Show a guest's console, and type. Ctrl-] detaches. Exit status: 0 detached, or input has ended and the guest took
    it; 1 refused; 3 the guest does not run; 4 it has ended; 5 the hypervisor or the console driver has; 6 the guest did
    not read all."""
    from triovisor.console import End, Settings, show_console

    def say(line: str) -> None:
        os.write(2, f"\r\ntv: {line}\r\n".encode() if sys.stdin and sys.stdin.isatty() else f"tv: {line}\n".encode())

    settings = Settings(name, steal, watch, lambda data: _write(Stream.STDOUT, data), say)
    try:
        ended = show_console(ctx.obj, settings)
    except TvError as error:
        print(f"tv: {error}", file=sys.stderr)
        raise SystemExit(End.NOT_RUNNING if error.status is Status.EHOSTDOWN else End.REFUSED) from None
    print(f"tv: {ended.why}", file=sys.stderr)
    raise SystemExit(ended.end)


@app.command()
def dmesg(
    ctx: typer.Context,
    name: OptionalName = None,
    raw: Annotated[bool, typer.Option("--raw", help="As it is, on a terminal too.")] = False,
) -> None:
    """Print the last 256 KiB of a guest's console, or without NAME of the hypervisor's log. On a terminal control
    characters are made visible: what a guest writes must not steer it."""
    data = ctx.obj.dmesg(name)
    harmless = raw or not (sys.stdout and sys.stdout.isatty())
    _write(Stream.STDOUT, data if harmless else render.visible(data).encode())


@driver_app.command("list")
def list_drivers(ctx: typer.Context, json: Json = False) -> None:
    """List all driver domains."""
    drivers = ctx.obj.drivers()
    if json:
        _print(drivers, str, json)
    else:
        _print_table(render.driver_table(drivers))


@driver_app.command()
def restart(ctx: typer.Context, driver: Driver) -> None:
    """Replace a driver's process, or start anew one that was given up, and with it the guests that waited for it."""
    ctx.obj.restart_driver(driver)


@driver_app.command()
def fault(
    ctx: typer.Context,
    driver: Driver,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="An act such as hang or exit, or kill@POINT.")],
    count: Annotated[int, typer.Option(min=1, help="At which time it strikes.")] = 1,
) -> None:
    """Make a driver fail on purpose."""
    ctx.obj.inject(driver, what, count)


def _print(value: Any, text: Callable[[Any], str], json: bool) -> None:
    print(msgspec.json.encode(value).decode() if json else text(value))


def _print_table(table: render.Table) -> None:
    """For a person, fitted to the terminal; elsewhere whole lines."""
    if not (sys.stdout and sys.stdout.isatty()):
        print(render.columns(table))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*table.head, box=None, pad_edge=False)
    for row in table.rows:
        shown.add_row(*(Text(str(cell)) for cell in row))
    Console().print(shown)


def _write(stream: Stream, data: bytes) -> None:
    """Write all of it to this process's own stream. Whoever shares a terminal may have made it non-blocking."""
    descriptor = int(stream)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def _pass_interrupts_on(command: Command) -> None:
    """The first Ctrl-C goes to the command; the second ends this one, and the command with it."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        command.signal(signal.SIGINT)

    signal.signal(signal.SIGINT, pass_on)


def _open_closed_streams() -> None:
    """Let no socket get the number of a standard stream that the caller has closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def main() -> None:
    """Entry of the `tv` script."""
    _open_closed_streams()
    app(prog_name="tv")


if __name__ == "__main__":
    main()
