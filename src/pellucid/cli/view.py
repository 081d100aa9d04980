"""The command ``view``."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidParameter
from ..files import RUN
from .options import (
    AS_FOR_EXPLAIN,
    DEVICE,
    MAX_BATCH,
    ModelOption,
    WeightsOption,
    checked_max_batch,
    chosen_device,
    parted,
)
from .terminal import say, show_noticed

if TYPE_CHECKING:
    from ..view.page import View


def view(
    shown: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN | PHOTO...]", help="The output of `pellucid benchmark`, or photos as for `explain`."
        ),
    ] = None,
    model: ModelOption = "",
    weights: WeightsOption = None,
    classes: Annotated[str | None, AS_FOR_EXPLAIN] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C", help="Beside those of the catalogue; text that names files is taken here alone."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="Surrogates' files, beside original, backward and forward."),
    ] = None,
    channels: Annotated[str, AS_FOR_EXPLAIN] = "mean",
    max_batch: Annotated[str, MAX_BATCH] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    rate: Annotated[
        bool, typer.Option("--rate", help="Rate a RUN's maps blind; the first --variant, else the run's first.")
    ] = False,
    layer: Annotated[str | None, typer.Option(help="With --rate: where maps are rated; else the image.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE.html", help="Write a RUN's page as one file instead, which asks nobody."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where it answers; with another than this machine's own, whoever has the token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The first that is tried; 0: any that is free.")
    ] = 7860,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
) -> None:
    """Look at maps in a browser: of photos and a model at every layer, or of a benchmark's run.

    Nothing leaves this machine. A run needs no model. Ctrl-C ends it.

    Examples:

    `pellucid view`

    `pellucid view photos/ --model resnet18 --weights DEFAULT`

    `pellucid view run`

    `pellucid view run --export run.html`

    `pellucid view run --rate`
    """
    from ..view.server import Server

    given = shown or []
    if rate:
        if export is not None or not _is_run(given):
            raise InvalidParameter("--rate takes the folder of a run of pellucid benchmark, and no --export")
        from ..view.rating import RatingView

        rating = RatingView.open(given[0], next(iter(parted(variant or [])), None), layer)
        serve(rating, Server(rating, host, port), no_open)
        return
    if _is_run(given) and not model:
        from ..view.run import RunView

        run = RunView.open(given[0])
        if export is not None:
            _export(run, export)
            return
        page: Any = run
    elif export is not None:
        raise InvalidParameter(
            f"--export {export} writes the page of a RUN of pellucid benchmark; give its folder"
        )
    else:
        page = _live(
            given,
            model=model,
            weights=weights,
            classes=classes,
            methods=parted(methods or []),
            variants=parted(variant or []),
            channels=channels,
            max_batch=checked_max_batch(max_batch),
            device=chosen_device(device),
        )
    serve(page, Server(page, host, port), no_open)


def _is_run(given: list[str]) -> bool:
    """Whether a single text names the folder of a run, here or at a URL."""
    return len(given) == 1 and ("://" in given[0] or (Path(given[0]) / RUN).is_file())


def _export(run: Any, path: Path) -> None:
    from ..files import replace_file

    if path.suffix not in (".html", ".htm"):
        raise InvalidParameter(f"--export {path}: the page is HTML; give a file ending in .html")
    replace_file(path, run.exported().encode(errors="replace"))
    say(f"open {path}")


def _live(given: list[str], **asked: Any) -> View:
    """A model's page; with nothing given the included network's and procedural photos."""
    from ..catalog import METHODS, VARIANTS
    from ..catalog import method as method_of
    from ..catalog import variant as variant_of
    from ..data.sources import open_images
    from ..errors import require_choice
    from ..experiments.noticing import of_model
    from ..heatmap import Channels
    from ..layers import explainable
    from ..models.zoo import load_network
    from ..view.live import LiveView

    require_choice("channels", asked["channels"], Channels)
    for text in asked["methods"]:
        method_of(text)
    for text in asked["variants"]:
        variant_of(text)
    names = None if asked["classes"] is None else parted([asked["classes"]])
    name = asked["model"] or ("resnet50" if given else "shapes-resnet")
    loaded = load_network(name, asked["weights"], names, device=asked["device"])
    explainable(loaded.model)
    show_noticed(of_model(loaded))
    photos = given if given or asked["model"] else ["shapes:12"]
    return LiveView(
        loaded,
        [open_images(photo) for photo in photos],
        tuple(dict.fromkeys([*asked["methods"], *METHODS])),
        tuple(dict.fromkeys([*VARIANTS, *asked["variants"]])),
        asked["channels"],
        asked["max_batch"],
        asked["device"],
    )


def serve(page: Any, server: Any, no_open: bool) -> None:
    """Say where a page is, open it where there is a desktop, and answer until Ctrl-C."""
    say(f"open {server.url} (Ctrl-C ends it)")
    if not server.local:
        say("whoever has this address can look on, and nothing encrypts it on its way", err=True)
    has_desktop = sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    if has_desktop and not no_open and sys.stdout.isatty():
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.server_close()
        getattr(page, "close", lambda: None)()
