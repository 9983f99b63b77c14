"""`tv image`: overlays over raw images. It needs no hypervisor."""

from pathlib import Path
from typing import Annotated

import typer

from triovisor.cli_words import Json, done
from triovisor.printing import print_value

__all__ = ["image_app"]

image_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Copy-on-write overlays over raw images.")

_BACKING_HELP = "The raw image or block device that it stands on."

Overlay = Annotated[Path, typer.Argument(metavar="OVERLAY", help="An image in qcow2.")]
Backing = Annotated[Path, typer.Option("--backing", metavar="RAW", help=_BACKING_HELP)]


@image_app.command(epilog="For example: tv image create copy.qcow2 --backing disk.img")
def create(
    overlay: Overlay,
    backing: Backing,
    size: Annotated[str | None, typer.Option(metavar="SIZE", help="Of its disk, such as 10G. Default: RAW's.")] = None,
    json: Json = False,
) -> None:
    """Make an overlay: it takes what a guest writes, and RAW stays as it is."""
    from triovisor import overlays

    made = overlays.create(overlay, backing, None if size is None else overlays.parse_size(size))
    values = {"overlay": str(overlay), "size_bytes": made.size_bytes}
    print_value(values, lambda _: f"created {overlay}, a disk of {made.size_bytes} bytes", json)


@image_app.command(epilog="For example: tv image info copy.qcow2")
def info(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image, raw or in qcow2.")], json: Json = False
) -> None:
    """Tell about an image, also about one that is in use."""
    import msgspec

    from triovisor import overlays, render

    print_value(msgspec.structs.asdict(overlays.info(image)), render.pairs, json)


@image_app.command(epilog="For example: tv image commit copy.qcow2 --backing disk.img")
def commit(overlay: Overlay, backing: Backing, json: Json = False) -> None:
    """Write what an overlay holds into RAW, and empty it. No guest may use either."""
    from triovisor import overlays

    overlays.commit(overlay, backing)
    done(json, "image commit", overlay=str(overlay), backing=str(backing))


@image_app.command(epilog="For example: tv image check --repair copy.qcow2")
def check(
    overlay: Overlay,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    json: Json = False,
) -> None:
    """See whether an overlay that no guest uses is whole. Exit status 1 where it is not."""
    import msgspec

    from triovisor import overlays, render
    from triovisor.overlays import ImageError

    checked = overlays.check(overlay, repair=repair)
    print_value(msgspec.structs.asdict(checked), render.pairs, json)
    mend = f"tv image check --repair {overlay}"
    if checked.errors:
        raise ImageError(f"{overlay}: it has {checked.errors} errors: {mend} mends what can be mended")
    if checked.leaks:
        raise ImageError(f"{overlay}: it is whole, but {checked.leaks} clusters are not used: {mend} gives them back")
