"""`tv driver`: driver domains."""

import enum
from typing import Annotated

import typer

from triovisor import render
from triovisor.cli_words import Driver, Json, done
from triovisor.printing import print_table, print_value

__all__ = ["driver_app"]

driver_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Driver domains.")


class Wanted(enum.StrEnum):
    """Whether a standby is."""

    ON = "on"
    OFF = "off"


@driver_app.command("list", epilog="For example: tv driver list --json")
def list_drivers(ctx: typer.Context, json: Json = False) -> None:
    """List all driver domains."""
    drivers = ctx.obj.drivers()
    if json:
        print_value(drivers, str, json)
    else:
        print_table(render.driver_table(drivers))


@driver_app.command(epilog="For example: tv driver restart blkback")
def restart(ctx: typer.Context, driver: Driver, json: Json = False) -> None:
    """Replace a driver's process, or start anew one that was given up, and with it the guests that waited for it."""
    ctx.obj.restart_driver(driver)
    done(json, "driver restart", name=driver)


@driver_app.command(epilog="For example: tv driver standby blkback off")
def standby(
    ctx: typer.Context,
    driver: Driver,
    wanted: Annotated[Wanted, typer.Argument(metavar="on|off", show_default=False)],
    json: Json = False,
) -> None:
    """Keep a second process of a driver that waits to take over, or none: memory against milliseconds."""
    ctx.obj.keep_standby(driver, wanted is Wanted.ON)
    done(json, "driver standby", name=driver, standby=wanted is Wanted.ON)


@driver_app.command(epilog="For example: tv driver fault blkback crash@reply --count 10")
def fault(
    ctx: typer.Context,
    driver: Driver,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="An act such as hang or exit, or crash@POINT.")],
    count: Annotated[int, typer.Option(min=1, help="At which time it strikes.")] = 1,
    json: Json = False,
) -> None:
    """Make a driver fail on purpose."""
    ctx.obj.inject(driver, what, count)
    done(json, "driver fault", name=driver, what=what, count=count)
