"""The command ``explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import require_count
from .facts import COMMAND
from .output import staged
from .request import Request, checked_heatmap, checked_target, chosen_device, named, named_variants, parted
from .run import Run
from .terminal import show_run


def explain(
    ctx: typer.Context,
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO...", help="Image files, folders, .parquet tables, or `shapes:COUNT`."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    model: Annotated[
        str, typer.Option(help="A name of `pellucid list models`, `timm:NAME` or `path/to/file.py:factory`.")
    ] = "resnet50",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .safetensors or .pth file, or `DEFAULT` to download.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Names or text forms, comma-separated; may be repeated.", show_default="gradient"),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="`all`, names or globs, comma-separated; by default each method's own choice."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="`original`, `backward`, `forward` or a surrogate's .safetensors file; may be repeated.",
            show_default="original",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="auto|label|INT", help="The class to explain; `auto` is the highest logit.")
    ] = "auto",
    channels: Annotated[
        str, typer.Option(help="How channels become one map: mean, sum, abs_sum, abs_max, positive_sum.")
    ] = "mean",
    upsampling: Annotated[str, typer.Option(help="nearest or bilinear.")] = "nearest",
    clip: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Percentiles at which maps are clipped, as 0.5,99.5.")
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the maps over the grey photo.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many photos of each folder or table.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="A table's column of labels, for `--target label`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    max_batch: Annotated[int, typer.Option(help="No forward pass sees more images.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    attributions: Annotated[
        bool, typer.Option(help="Whether to write the raw attributions: large, and in memory until the end.")
    ] = True,
) -> None:
    """Explain photos: pictures, raw attributions, and all that is needed to make them again.

    Examples:

    `pellucid explain cat.jpg --weights DEFAULT -o out`

    `pellucid explain photos/ --model resnet18 --weights resnet18.safetensors
    --methods "gradient,smoothed(gradient, samples=50)" --layers "layer1.*,layer2.*"
    --variant original --variant backward -o out`
    """
    from ..catalog import method
    from ..catalog import variant as variant_of

    require_count("max_batch", max_batch)
    texts = named(parted(methods or ["gradient"]))
    variants = named_variants(variant or ["original"])
    request = Request(
        photos=photos,
        model=model,
        weights=weights,
        methods={name: method(text) for name, text in texts.items()},
        texts=texts,
        layers=None if layers is None else parted(layers),
        variants={name: variant_of(text) for name, text in variants.items()},
        variant_texts=variants,
        target=checked_target(target),
        heatmap=checked_heatmap(channels, upsampling, clip),
        seed=seed,
        max_batch=max_batch,
        device=chosen_device(device),
        limit=limit,
        label_column=label_column,
        overlay=overlay,
        keep_attributions=attributions,
        command=ctx.meta[COMMAND],
    )
    with staged(output) as folder:
        run = Run.of(request, folder)
        run.explain_all()
        run.write()
    show_run(run, output)
    if run.left_out:
        raise typer.Exit(1)
