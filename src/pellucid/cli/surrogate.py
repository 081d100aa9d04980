"""The commands ``surrogate train`` and ``surrogate evaluate``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import InvalidData, InvalidImage, InvalidParameter, OutputNotWritable, counted, require_count
from .request import chosen_device, parted
from .terminal import progress, show_whole

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.sources import Sample, Source
    from ..metrics.base import Case
    from ..models.zoo import LoadedModel
    from ..training.hyperparameters import TrainingPrecision
    from ..variants.surrogate import Surrogate

surrogate = typer.Typer(
    no_args_is_help=True, help="Train and evaluate bilinear paths in place of strided convolutions."
)

Model = Annotated[str, typer.Option(help="As for `explain`.")]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="As for `explain`.")]
Images = Annotated[list[str], typer.Option(help="Folders, .parquet tables or `shapes:COUNT`; may be repeated.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images of each folder or table.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@surrogate.command()
def train(
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
    ],
    model: Model = "resnet50",
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    include_first: Annotated[
        bool, typer.Option("--include-first", help="Train a path for the first convolution, too.")
    ] = False,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the paths' initial values and the order.")] = 0,
    precision: Annotated[
        str, typer.Option(help="full; bfloat16, faster where the processor has units for it; auto: that on a GPU.")
    ] = "auto",
    device: Device = "auto",
) -> None:
    """Train a surrogate; run again, it goes on where it was stopped.

    The state after each epoch is kept beside the output in NAME.checkpoint, which is removed at the end.

    Example: `pellucid surrogate train --model resnet18 --weights resnet18.safetensors
    --images train.parquet -o surrogate.safetensors`
    """
    from ..models.zoo import load_model
    from ..training.checkpoints import Checkpoints
    from ..training.surrogates import train_surrogate
    from ..variants.surrogate import checked_path
    from .facts import weights_facts

    checked_path(output)
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise OutputNotWritable(f"cannot write {output}; choose a folder that exists and that you may write to")
    checkpoint = output.with_suffix(".checkpoint")
    loaded = load_model(model, weights, device=chosen_device(device))
    about = {"model": model, "data": list(images), "preprocess": loaded.preprocess.as_dict()}
    with progress() as bar:
        task = bar.add_task("reading images", total=None)
        source = opened(images, limit, None)

        def advance(done: int, steps: int, loss: float) -> None:
            bar.update(task, completed=done, total=steps, description=f"training, loss {loss:.4f}")

        trained = train_surrogate(
            loaded.model, source, epochs, lr, batch_size=batch_size, preprocess=loaded.preprocess,
            include_first=include_first, checkpoint=checkpoint, seed=seed, progress=advance,
            precision=cast("TrainingPrecision", precision),
            about=about | weights_facts(loaded),
        )  # fmt: skip
    trained.save(output)
    Checkpoints(checkpoint, {}).remove()
    seconds, last = trained.facts["seconds"], sum(trained.facts["losses"][-1])
    typer.echo(f"{output}: {trained}, loss {last:.4f} after {counted(epochs, 'epoch')}, {seconds:.0f} s")
    show_left_out(trained.facts["left_out"])


@surrogate.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `surrogate train` wrote.")],
    images: Images,
    model: Model = "resnet50",
    weights: Weights = None,
    method: Annotated[str, typer.Option(help="Whose maps' total variation is compared.")] = "gradient",
    layers: Annotated[list[str] | None, typer.Option(help="As for `explain`.", show_default="all")] = None,
    include_first: Annotated[
        bool, typer.Option("--include-first", help="Use the path of the first convolution, too.")
    ] = False,
    label_column: Annotated[str | None, typer.Option(help="A table's column of labels, for top-1.")] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the method's noise.")] = 0,
    max_batch: Annotated[int, typer.Option(help="No forward pass sees more images.")] = 32,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .json file for the numbers.")
    ] = None,
) -> None:
    """Compare a surrogate with the original: predictions, and total variation of a method's maps.

    Explained is the true class where labels are known, else the original's prediction.

    Example: `pellucid surrogate evaluate surrogate.safetensors --model resnet18 --weights resnet18.safetensors
    --images val.parquet --label-column imagenet_label`
    """
    from dataclasses import replace

    from ..catalog import method as named_method
    from ..models.zoo import load_model
    from ..variants.surrogate import load_surrogate

    require_count("max_batch", max_batch)
    if output is not None and output.suffix != ".json":
        raise InvalidParameter(f"--output {output} does not end in .json; the numbers are written in that format")
    known = load_surrogate(file)
    if include_first:
        known = replace(known, include_first=True)
    loaded = load_model(model, weights, device=chosen_device(device))
    source = opened(images, limit, label_column)
    # A data set may number its classes otherwise than the model, unless it names the very same ones.
    labeled = label_column is not None or (source.classes is not None and source.classes == loaded.classes)
    comparison = Comparison(
        loaded, known, named_method(method), parted(layers or ["all"]), labeled, seed, max_batch
    )
    with progress() as bar:
        task = bar.add_task("evaluating", total=len(source))
        for chunk in comparison.chunks(source):
            comparison.add(chunk)
            bar.advance(task, len(chunk))
    results = comparison.results()
    show(results, model, method)
    show_left_out(comparison.left_out)
    if output is not None:
        write(output, results | {"surrogate": dict(known.facts), "left_out": comparison.left_out})


def opened(specs: Sequence[str], limit: int | None, label_column: str | None) -> Source:
    """The images of all sources as one."""
    from ..data.sources import joined, open_images

    parts = {spec: open_images(spec, label_column)[:limit] for spec in dict.fromkeys(specs)}
    source = joined(parts) if len(parts) > 1 else next(iter(parts.values()))
    if len(source) == 0:
        raise InvalidData(f"{', '.join(specs)}: there are no images")
    return source


@dataclass
class Comparison:
    """A surrogate beside the original, image by image."""

    loaded: LoadedModel
    surrogate: Surrogate
    method: Any
    layers: Sequence[str]
    labeled: bool
    seed: int
    max_batch: int
    left_out: list[str] = field(default_factory=list)
    values: dict[str, list[Tensor]] = field(default_factory=dict)  # by what they are, of each chunk

    def chunks(self, source: Source) -> Iterator[list[tuple[Sample, Tensor]]]:
        """Samples and their pixels, ``max_batch`` of one size together; what cannot be read is noted."""
        waiting: dict[tuple[int, ...], list[tuple[Sample, Tensor]]] = {}
        for position in range(len(source)):
            try:
                sample = source[position]
                pixels = self.loaded.preprocess(sample.image)
            except InvalidImage as error:
                self.left_out.append(str(error))
                continue
            chunk = waiting.setdefault(tuple(pixels.shape), [])
            chunk.append((sample, pixels))
            if len(chunk) == self.max_batch:
                yield waiting.pop(tuple(pixels.shape))
        yield from waiting.values()

    def add(self, chunk: Sequence[tuple[Sample, Tensor]]) -> None:
        """Measure images of one size."""
        import torch

        from ..metrics.fidelity import PredictionDifference, TargetDifference, Top1
        from ..metrics.noise import TotalVariation

        device = next(self.loaded.model.parameters()).device
        images = torch.stack([pixels for _, pixels in chunk]).to(device)
        labels = self.labels([sample for sample, _ in chunk])
        original, changed = self.cases(images, None if labels is None else labels.to(device))
        measured = {
            "difference over all classes": PredictionDifference().measure(changed)[""].values,
            "difference at the target": TargetDifference().measure(changed)[""].values,
        }
        for name, case in (("original", original), ("surrogate", changed)):
            if labels is not None:
                measured[f"top-1 {name}"] = Top1().measure(case)[""].values
            for layer, found in TotalVariation().measure(case).items():
                measured[f"{name} {layer}"] = found.values
        for name, values in measured.items():
            self.values.setdefault(name, []).append(values.double().cpu())

    def labels(self, samples: Sequence[Sample]) -> Tensor | None:
        """The true classes, where they are known as the model numbers them."""
        import torch

        if not self.labeled:
            return None
        for sample in samples:
            if sample.label is None:
                raise InvalidData(f"{sample.name} has no label; leave out --label-column, or the image")
        return torch.tensor([sample.label for sample in samples])

    def cases(self, images: Tensor, labels: Tensor | None) -> tuple[Case, Case]:
        """The same images explained with the original and with the surrogate; one class for both."""
        from ..metrics.base import Case
        from ..metrics.scoring import Scorer
        from ..variants.base import ORIGINAL, Variant

        model = self.loaded.model
        plain = Scorer(model, output="softmax", max_batch=self.max_batch)
        targets = plain.of(images).argmax(1) if labels is None else labels

        def case(variant: Variant, scorer: Scorer) -> Case:
            found = self.method(
                model, images, targets, self.layers, variant=variant, seed=self.seed, max_batch=self.max_batch
            )
            return Case(
                self.method, model, images, found, scorer, targets, variant,
                seed=self.seed, max_batch=self.max_batch, labels=labels,
            )  # fmt: skip

        # The second is scored by the original, too: what it knows of the images is asked for again.
        return case(ORIGINAL, plain), case(self.surrogate, plain)

    def results(self) -> dict[str, Any]:
        """Means over images, and standard deviations (over the images themselves, without correction)."""
        import torch

        if not self.values:
            raise InvalidImage(f"none of {len(self.left_out)} images can be read; the first: {self.left_out[0]}")
        found = {name: torch.cat(parts) for name, parts in self.values.items()}
        layers = [name.removeprefix("surrogate ") for name in found if name.startswith("surrogate ")]
        variation = {layer: [float(found[f"{which} {layer}"].mean()) for which in ORDER] for layer in layers}
        differences = {name: values for name, values in found.items() if name.startswith("difference")}
        return {
            "images": len(next(iter(found.values()))),
            "top1": {which: float(found[f"top-1 {which}"].mean()) for which in ORDER if f"top-1 {which}" in found},
            "prediction_difference": {
                name: {"mean": float(values.mean()), "std": float(values.std(correction=0))}
                for name, values in differences.items()
            },
            "total_variation": {
                layer: {
                    "original": before,
                    "surrogate": after,
                    "reduction": 1 - after / before if before else None,
                }
                for layer, (before, after) in variation.items()
            },
        }


ORDER = ("original", "surrogate")


def show(results: dict[str, Any], model: str, method: str) -> None:
    """Print the comparison."""
    typer.echo(f"{model} and its surrogate on {counted(results['images'], 'image')}")
    for which, share in results["top1"].items():
        typer.echo(f"top-1 {which}: {share:.2%}")
    for name, values in results["prediction_difference"].items():
        typer.echo(f"100 x {name}: {values['mean']:.2f} +- {values['std']:.2f}")
    table = Table("layer", *ORDER, "reduction", title=f"Total variation of {escape(method)}", title_justify="left")
    reductions = []
    for layer, values in results["total_variation"].items():
        reduction = values["reduction"]  # undefined where the original's maps are all constant
        reductions += [] if reduction is None else [reduction]
        share = "" if reduction is None else f"{reduction:.1%}"
        table.add_row(layer, *(f"{values[which]:.3f}" for which in ORDER), share)
    if reductions:
        table.add_row("mean", "", "", f"{sum(reductions) / len(reductions):.1%}")
    show_whole(table)


def show_left_out(left_out: Sequence[str]) -> None:
    """Say which images could not be read."""
    if left_out:
        typer.echo(f"left out {counted(len(left_out), 'image')}:", err=True)
        for message in left_out:
            typer.echo(f"  {message}", err=True)


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    from ..files import replace_file

    try:
        text = json.dumps(results, indent=2, allow_nan=False)
    except ValueError as error:
        raise OutputNotWritable(f"{path}: a value is not finite, which JSON cannot hold") from error
    replace_file(path, (text + "\n").encode())
