"""The commands ``maps`` and ``show``: maps of many images as Parquet shards, and pictures of them later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidData, InvalidParameter, PellucidError, UnknownName, counted, percent, shortened
from .benchmark import spec_content
from .options import (
    AS_FOR_EXPLAIN,
    COMMAND,
    DEVICE,
    FOLDER,
    MAX_BATCH,
    AddressOption,
    CpusOption,
    DisplayOption,
    ModelOption,
    PreprocessOption,
    RunnerOption,
    ScaleOption,
    WeightsOption,
    chosen_runner,
)
from .output import unused
from .terminal import ALREADY_FINISHED, progress, say, show_left_out, show_notes, show_noticed

if TYPE_CHECKING:
    import pandas

_OTHERS = ("output", "place", "limit", "runner", "address", "cpus")
_FIRST = 6  # images that are drawn where none is named


def maps(
    ctx: typer.Context,
    images: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A folder or URL of images, .parquet tables or webdataset's .tar."),
    ],
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="The folder or fsspec URL of the maps.")
    ] = None,
    place: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUTPUT", help="The same, as other commands take it.")
    ] = None,
    model: ModelOption = "resnet50",
    weights: WeightsOption = None,
    classes: Annotated[str | None, AS_FOR_EXPLAIN] = None,
    methods: Annotated[list[str] | None, typer.Option(help="As for `explain`.", show_default="gradient")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="`all`, names or globs.", show_default="all")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="As for `explain`.", show_default="original")] = None,
    layouts: Annotated[list[str] | None, AS_FOR_EXPLAIN] = None,
    scale: ScaleOption = None,
    display: DisplayOption = None,
    preprocess: PreprocessOption = None,
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="`scored`, the highest score; else as for `explain`.")
    ] = "scored",
    channels: Annotated[str, AS_FOR_EXPLAIN] = "mean",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, the first.")] = None,
    label_column: Annotated[str | None, AS_FOR_EXPLAIN] = None,
    images_per_cell: Annotated[
        int | None,
        typer.Option(
            "--images-per-shard",
            min=1,
            help="Of folders and local tables; a .tar or remote table is one shard.",
            show_default="up to 64, of a quarter of the images",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    max_batch: Annotated[str | None, MAX_BATCH] = None,
    device: Annotated[str, DEVICE] = "auto",
    runner: RunnerOption = "inline",
    address: AddressOption = None,
    cpus: CpusOption = None,
) -> None:
    """Explain many images, without pictures: a Parquet data set of float16 maps.

    A run that was interrupted goes on where it was, shard by shard, when the same command is given again. What
    cannot be read is named and left out. `pellucid show` draws maps later.

    Examples:

    `pellucid maps photos/ maps/ --model resnet18 --weights resnet18.safetensors --methods gradcam`

    `pellucid maps s3://bucket/train/ s3://bucket/maps/ --runner ray --address head:6379`
    """
    from ..experiments.bulk import write_maps
    from ..experiments.spec import MapsSpec, spec_of

    if (output is None) == (place is None):
        raise InvalidParameter("give the folder or URL of the maps once, as the second name or by -o")
    output = output or place or ""
    options = {name: value for name, value in ctx.params.items() if name not in _OTHERS} | {"count": limit}
    given = {"model": [model], "weights": weights and [weights], "classes": classes and [classes]}
    lists = {"methods": methods or ["gradient"], "layers": layers or None, "variant": variant or None}
    spec = spec_of(MapsSpec, None, spec_content(options | given | lists | {"layouts": layouts or None}))
    chosen = chosen_runner(runner, address, cpus)
    states: list[tuple[int, int]] = []  # of shards: how many were finished, and are to be
    with progress() as show:
        run = write_maps(
            spec,
            output,
            runner=chosen,
            advance=lambda done, total: states.append((done, total)),
            tell=lambda what, done, total: show(f"explaining {what}", done, total),
            command=ctx.meta[COMMAND],
        )
    if len(states) == 1:  # no shard was left
        say(ALREADY_FINISHED.format(output))
    shards = counted(len(run.shards), "shard")
    say(f"{counted(run.maps, 'map')} of {counted(run.images, 'image')} in {shards}, in {output}")
    show_noticed(run.noticed)
    show_notes(run.notes, "image", run.images)
    show_left_out("image", list(run.skipped.values()))
    show_left_out("shard", [f"{name}: {message}" for name, message in run.failed.items()])
    say(f"next: pellucid show {output} -o pictures")
    if run.failed or run.skipped:
        raise typer.Exit(1)


def show_command(
    run: Annotated[str, typer.Argument(metavar="MAPS", help="The output of `pellucid maps`.")],
    output: Annotated[Path, FOLDER],
    image: Annotated[
        list[str] | None, typer.Option(help="Its name; may be repeated.", show_default="the first ones")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many images.", show_default="6; all that --image names")
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(help="May be repeated.", show_default="all")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the maps over the gray photo.")] = False,
) -> None:
    """Draw maps that `pellucid maps` wrote: a picture for each image, methods by layers.

    Photos stand beside the maps where their source can still be read.

    Example: `pellucid show maps/ --image cat.jpg -o pictures`
    """
    from ..experiments.bulk import class_explained, read_maps, score_of, values_of
    from ..files import file_name, writable
    from ..report.figures import has_negative

    chosen: dict[str, str | list[str]] = {}
    for column, given in (("image", image), ("layer", layer)):
        if given:
            known = values_of(run, column)
            chosen[column] = [_named(name, known, f"{column} of the maps in {run}") for name in given]
    found = read_maps(run, **chosen)
    if found.empty:
        raise InvalidData(f"{run} has no maps of these images at these layers; leave out --image or --layer")
    kind, is_class = score_of(run), class_explained(run)
    keys = ["source", "position", "image"]
    drawn = list(found.groupby(keys, sort=False, observed=True))[: limit or (None if image else _FIRST)]
    with writable(output):
        output.mkdir(parents=True, exist_ok=True)
    signed = has_negative(values for _, rows in drawn for values in rows["map"])  # one scale in all pictures
    files: list[str] = []
    for (source, position, name), rows in drawn:
        files.append(unused(f"{position:06d}-{file_name(str(Path(name).with_suffix('')))}", files))
        _draw(run, source, position, rows, overlay, (kind, is_class), signed, output / f"{files[-1]}.png")
    say(f"wrote {counted(len(drawn), 'picture')} to {output}")


def _named(name: str, known: list[str], what: str) -> str:
    """The one of the known names that is meant: it itself, or that whose end after a folder it is.

    Where nothing is known reading tells why, so the name is given back.
    """
    if not known or name in known:
        return name
    ends = [one for one in known if one.endswith(f"/{name}")]
    if len(ends) > 1:
        raise InvalidParameter(f"{name} may be any {what} called {shortened(ends, 6)}; give the whole name")
    if not ends:
        raise UnknownName(what, name, known)
    return ends[0]


def _draw(
    run: str,
    source: str,
    position: int,
    rows: pandas.DataFrame,
    overlay: bool,
    of: tuple[str, bool],
    signed: bool,
    path: Path,
) -> None:
    """Draw one image's maps, and the photo if it can still be read; ``of`` a kind of score, or of no class."""
    from ..experiments.bulk import photo_of
    from ..outputs import ends_of
    from ..report.album import signs
    from ..report.figures import CaptionedPhoto, grid, has_negative, write_figure

    first, (kind, is_class) = rows.iloc[0], of
    layers = list(dict.fromkeys(rows["layer"]))
    parts = rows.groupby(["method", "variant"], sort=False, observed=True)
    by = {key: dict(zip(part["layer"], part["map"], strict=True)) for key, part in parts}
    photos = []
    try:
        score = percent(first["score"]) if kind == "probability" else f"{first['score']:.4g}"
        photos = [CaptionedPhoto(photo_of(run, source, position), f"{first['target']} {score}")]
    except PellucidError as error:
        say(f"note: without its photo: {error}", err=True)
    cells = [[maps.get(layer) for layer in layers] for maps in by.values()]
    names = [method if variant == "original" else f"{method}, {variant}" for method, variant in by]
    explained = first["target"] if is_class else ends_of(first["target"])
    below_zero = {method for (method, _), maps in by.items() if has_negative(maps.values())}
    told, note = signs([method for method, _ in by], explained, below_zero)
    over = overlay and bool(photos)
    figure = grid(cells, layers, names, photos, first["image"], over, explained=told, note=note, signed=signed)
    write_figure(figure, path)
