"""`tv`, the administrator's command."""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from triovisor.cli_driver import driver_app
from triovisor.cli_image import image_app
from triovisor.cli_life import add_life
from triovisor.cli_looks import add_looks
from triovisor.cli_words import Name, complete_domain, complete_driver
from triovisor.client import Client
from triovisor.mistakes import Mistake
from triovisor.printing import print_value, write_all

if TYPE_CHECKING:
    from triovisor.command import Command, ExecResult

__all__ = ["app", "main"]

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


class _Tv(TyperGroup):
    """Where every command's failure becomes one line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            from triovisor.cli_absent import refuse_absent

            refuse_absent(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
            return result
        except Mistake as error:
            print(f"tv: {error}", file=sys.stderr)
            raise SystemExit(EXIT_REFUSED) from None
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(EXIT_BROKEN_PIPE) from None


app = typer.Typer(
    cls=_Tv,
    context_settings={"help_option_names": ["--help", "-h"]},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Administer a Triovisor hypervisor: guests, drivers, logs. Verbs, columns and habits are those of xl.",
    epilog="For example: tv create web.toml, then tv list. tv VERB --help shows an example of each.",
)
app.add_typer(driver_app, name="driver")
app.add_typer(image_app, name="image")
add_life(app)
add_looks(app)

_RUN_HELP = "Run folder or admin socket. Default: $TRIOVISOR_RUN, or the latest run in $TRIOVISOR_RUNS or ./runs."


@app.callback()
def _start(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Option(metavar="PATH", help=_RUN_HELP)] = None,
) -> None:
    ctx.obj = Client(run)


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="For example: tv exec web -- sh -c 'uname -a; df /mnt'",
)
def execute(
    ctx: typer.Context,
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.")],
    no_stdin: Annotated[bool, typer.Option("-n", "--no-stdin", help="Give the command no input.")] = False,
    json: Annotated[bool, typer.Option("--json", help="No input; print all output and the end as JSON.")] = False,
) -> None:
    """Run a command in a guest, with this one's streams. Exit status: the command's, 128 + its signal, or 125."""
    from triovisor.command import BytesSource, DescriptorSource, exit_code, pump

    argv = command[1:] if command[0] == "--" else command
    if json:
        ended = ctx.obj.exec(name, argv)
        print_value(_readable(ended), str, True)
        raise SystemExit(exit_code(ended))
    with ctx.obj.command(name, argv) as running:
        _pass_interrupts_on(running)
        ended = pump(running, BytesSource(b"") if no_stdin else DescriptorSource(0), write_all)
    if ended.why:
        print(f"tv: {ended.why}", file=sys.stderr)
    raise SystemExit(exit_code(ended))


def _readable(ended: "ExecResult") -> dict[str, Any]:
    shown = {stream: getattr(ended, stream).decode(errors="backslashreplace") for stream in ("stdout", "stderr")}
    return {**shown, "status": ended.status, "signal": ended.signal, "why": ended.why}


@app.command(epilog="For example: tv console web")
def console(
    ctx: typer.Context,
    name: Name,
    steal: Annotated[bool, typer.Option("--steal", help="Take the keyboard from who has it.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Never type.")] = False,
) -> None:
    """Show a guest's console, and type. Ctrl-] detaches. Exit status: 0 detached, or input has ended and the guest took
    it; 1 refused; 3 the guest does not run; 4 it has ended; 5 the hypervisor or the console driver has; 6 the guest did
    not read all."""
    from triovisor.cli_console import attach

    attach(ctx.obj, name, steal=steal, watch=watch)


@app.command(epilog="For example: tv login; echo list | tv login")
def login(ctx: typer.Context) -> None:
    """An interactive shell with these verbs: Tab completes, the history lasts, Ctrl-D ends it."""
    from triovisor.login import run_shell

    def run(words: list[str]) -> int:
        return _run_in_shell(ctx, words)

    def complete(words: list[str], word: str) -> list[str]:
        return _complete(ctx, words, word)

    raise SystemExit(run_shell(run, complete))


def _run_in_shell(ctx: typer.Context, words: list[str]) -> int:
    """One verb of `tv login`, on the hypervisor that this was started for."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        app(["--run", str(ctx.obj.path), *words], prog_name="tv")
    except SystemExit as end:
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else EXIT_REFUSED
    finally:
        signal.signal(signal.SIGINT, handler)
    return 0


def _complete(ctx: typer.Context, words: list[str], word: str) -> list[str]:
    """Verbs, then a verb's options, and names of what it is about."""
    command: Any = ctx.find_root().command
    verbs = list(words)
    while verbs and hasattr(command, "get_command"):
        command = command.get_command(ctx, verbs.pop(0))
    if command is None:
        return []
    if hasattr(command, "list_commands"):
        shown = [name for name in command.list_commands(ctx) if not command.get_command(ctx, name).hidden]
        return [name for name in shown if name.startswith(word)]
    if word.startswith("-"):
        return [option for parameter in command.params for option in parameter.opts if option.startswith(word)]
    return complete_driver(ctx, word) if words[0] == "driver" else complete_domain(ctx, word)


def _pass_interrupts_on(command: "Command") -> None:
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
