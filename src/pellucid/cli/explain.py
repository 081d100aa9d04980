"""The command ``explain``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import counted, require_choice
from ..passes import DEFAULT_MAX_BATCH
from .options import (
    COMMAND,
    DEVICE,
    FOLDER,
    MAX_BATCH,
    checked_bands,
    checked_layouts,
    checked_max_batch,
    checked_scale,
    chosen_device,
    parted,
)
from .output import ASKED, finished, staged, write_facts
from .terminal import ALREADY_FINISHED, Show, progress, say, show_going_on, show_left_out, show_noticed, show_whole

if TYPE_CHECKING:
    from .request import Request

_MOST_ROWS = 20  # of the table of photos


def explain(
    ctx: typer.Context,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Images, folders, .parquet tables, `shapes:COUNT`, `torchvision:NAME`, `hf:NAME`.",
        ),
    ],
    output: Annotated[Path, FOLDER],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A name of `pellucid list models`, `timm:NAME`, `hf:NAME`, `hf:FOLDER` or "
            "`path/to/file.py:function`.",
        ),
    ] = "resnet50",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .safetensors or .pth file, also as .gz, or `DEFAULT` to download."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE|A,B,C", help="The classes' names; two name the answers of one output."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="Names or text forms; may be repeated.", show_default="gradient"),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="`all`, names or globs; by default each method's own choice."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C",
            help="`original`, `backward` or `forward` (also `backward_with_first`, `forward_with_first`), or a "
            "surrogate's .safetensors file; may be repeated.",
            show_default="original",
        ),
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER=HOW", help="Of layers whose dimensions cannot be told, as `blocks.*=tokens(prefix=1)`."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="The class to explain: `auto`, the highest logit; `label`; a number or name; a difference, as "
            "`tabby - tiger cat`; or `path/to/file.py:function` of the output.",
        ),
    ] = "auto",
    channels: Annotated[
        str, typer.Option(help="How channels become one map: mean, sum, abs_sum, abs_max, positive_sum.")
    ] = "mean",
    upsampling: Annotated[str, typer.Option(help="nearest or bilinear.")] = "nearest",
    clip: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Percentiles at which maps are clipped, as 0.5,99.5.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH[,clip]",
            help="The values of 16-bit and other images that become 0 and 1; those beyond go on below 0 and "
            "above 1, or with `,clip` end there.",
        ),
    ] = None,
    display: Annotated[
        str | None,
        typer.Option(metavar="mean|BANDS", help="The picture of images with other channels than RGB, as 3,2,1."),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="whole|none|FILE",
            help="What photos go through: the model's own unresized, scaling alone, or `file.py:name`.",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the maps over the gray photo.")] = False,
    alpha: Annotated[
        float | None, typer.Option(help="How much the strongest value hides of the photo: 0.6; implies --overlay.")
    ] = None,
    contours: Annotated[
        bool, typer.Option("--contours", help="Enclose what is half as strong; implies --overlay.")
    ] = False,
    pictures: Annotated[
        str | None,
        typer.Option(
            metavar="png,svg",
            help="Formats of figures and single maps beside the page.",
            show_default="png, of at most 1,000 maps",
        ),
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="The page alone shows the maps.")] = False,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many photos of each folder or table.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="A table's column of labels, for `--target label`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    max_batch: Annotated[str, MAX_BATCH] = str(DEFAULT_MAX_BATCH),
    device: Annotated[str, DEVICE] = "auto",
    raw: Annotated[
        str | None,
        typer.Option(metavar="yes|no", help="Write the raw attributions.", show_default="up to 2 GB"),
    ] = None,
) -> None:
    """Explain photos: a page, pictures, raw attributions, and all that is needed to make them again.

    A run that was interrupted goes on where it was when the same command is given again. A folder that holds
    another run, or files of one's own, is refused. Of thousands of photos `pellucid maps` writes the maps alone.

    Examples:

    `pellucid explain cat.jpg --weights DEFAULT -o out`

    `pellucid explain photos/ --model resnet18 --weights resnet18.safetensors
    --methods "gradient,smoothed(gradient, samples=50)" --layers "layer1.*,layer2.*"
    --variant original --variant backward -o out`
    """
    with progress() as show:
        from ..catalog import method
        from ..catalog import variant as variant_of
        from ..report.figures import Overlay
        from .request import (
            Request,
            checked_heatmap,
            checked_pictures,
            method_names,
            variant_names,
        )

        bound = checked_max_batch(max_batch)
        require_choice("--raw", raw, Literal["yes", "no", None])
        texts = method_names(parted(methods or ["gradient"]))
        variants = variant_names(variant or ["original"])
        over = Overlay(**({} if alpha is None else {"alpha": alpha}), contours=contours)
        request = Request(
            photos=photos,
            model=model,
            weights=weights,
            methods={name: method(text) for name, text in texts.items()},
            texts=texts,
            layers=None if layers is None else parted(layers),
            variants={name: variant_of(text) for name, text in variants.items()},
            variant_texts=variants,
            classes=None if classes is None else parted([classes]),
            layouts=checked_layouts(parted(layouts or [])),
            target=target,
            heatmap=checked_heatmap(channels, upsampling, clip),
            seed=seed,
            max_batch=bound,
            device=chosen_device(device),
            limit=limit,
            label_column=label_column,
            scale=None if scale is None else checked_scale(scale),
            bands=checked_bands(display),
            preprocess=preprocess,
            overlay=over if overlay or contours or alpha is not None else None,
            pictures=[] if no_pictures else None if pictures is None else checked_pictures(pictures),
            keep_attributions=None if raw is None else raw == "yes",
            title=title,
            command=ctx.meta[COMMAND],
        )
        told, before = _explained(request, output, show)
    _show(told, output, before)
    if told["left_out"]:
        raise typer.Exit(1)


def _explained(request: Request, output: Path, show: Show) -> tuple[dict[str, Any], int]:
    """What run.json tells of a request in ``output``, and of how many photos it was explained before."""
    from .explain_page import ExplainPage
    from .facts import run_facts
    from .run import ExplainRun, require_same_model

    key, asked = request.digest(), request.asked
    told = finished(output, key)
    if told is not None:
        require_same_model(request, told, output)
    if told is not None and told["title"] == request.title:
        say(ALREADY_FINISHED.format(output))
        return told, 0
    with staged(output, key, asked) as folder:
        run = ExplainRun.of(request, folder)
        before = len(run.found.photos)
        show_going_on(before, len(run.places), "photo")
        run.explain_all(show)
        ExplainPage(run).write()
        told = run_facts(run) | {ASKED: asked}
        write_facts(folder, told, key)
    return told, before


def _show(run: Mapping[str, Any], output: Path, before: int) -> None:
    """Show what run.json tells: the photos' classes, where everything is, and what was noticed.

    So many of the photos were explained ``before``.
    """
    from .photos import PhotoFacts

    photos = [PhotoFacts.model_validate(facts) for facts in run["photos"]]
    is_other = any(one.target != one.predicted for one in photos)
    told = {"target": "explained class" if photos[0].target.between is None else "explained"}
    told |= {"predicted": "predicted class"} if is_other else {}
    table = Table("photo", box=None, pad_edge=False)
    for head, one in zip(told.values(), (photos[0].target, photos[0].predicted), strict=False):
        table.add_column(head)
        table.add_column(one.kind, justify="right")
    for facts in photos[:_MOST_ROWS]:
        answers = [facts.target, facts.predicted][: len(told)]
        cells = [part for answer in answers for part in (escape(answer.name), str(answer))]
        table.add_row(escape(facts.name), *cells)
    show_whole(table, keys=1)
    if len(photos) > _MOST_ROWS:
        say(f"and {len(photos) - _MOST_ROWS} more in {output / 'predictions.csv'}")
    earlier = f", {before} of them before" if before else ""
    say(f"{counted(len(photos), 'photo')} explained{earlier}; open {output / 'report.html'}")
    show_noticed(run["noticed"])
    show_left_out("photo", run["left_out"])
