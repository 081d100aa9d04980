"""The commands ``surrogate train`` and ``surrogate evaluate``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import (
    InputWarning,
    InvalidData,
    InvalidImage,
    OutputNotWritable,
    PellucidError,
    counted,
    require_choice,
)
from .options import (
    DEVICE,
    MAX_BATCH,
    WEIGHTS_FILE,
    ModelOption,
    WeightsOption,
    checked_max_batch,
    chosen_device,
    parted,
)
from .output import require_place
from .terminal import ALREADY_FINISHED, progress, say, show_left_out, show_noticed, show_whole

if TYPE_CHECKING:
    import pandas as pd

    from ..data.sources import Sample, Source
    from ..experiments.record import Change
    from ..models.zoo import LoadedModel

_ORDER = ("original", "surrogate")
_DIFFERENCES = {
    "difference over all classes": "difference of the probabilities, summed over all classes",
    "difference at the target": "difference of the explained class's probability",
}
_AT_TARGET = "target_difference(at='explained')"
_STEPPING = {"slice": "strided slices"}
_COMPARED = ("prediction_difference", _AT_TARGET, "total_variation", "checkerboard")

surrogate = typer.Typer(
    no_args_is_help=True, help="Train and evaluate bilinear paths in place of strided convolutions."
)

_ImagesOption = Annotated[
    list[str], typer.Option(help="Folders, .parquet tables or `shapes:COUNT`; may be repeated.")
]
_LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many images of each folder or table.")]


@surrogate.command("train")
def _train(
    images: _ImagesOption,
    output: Annotated[Path, WEIGHTS_FILE],
    model: ModelOption = "resnet50",
    weights: WeightsOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 1e-3,
    include_first: Annotated[
        bool, typer.Option("--include-first", help="Train a path for the first convolution, too.")
    ] = False,
    limit: _LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the paths' initial values and the order.")] = 0,
    precision: Annotated[
        str, typer.Option(help="full; bfloat16, faster where the processor has units for it; auto: that on a GPU.")
    ] = "auto",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Train a surrogate; run again, it goes on where it was stopped.

    The state after each epoch is kept beside the output in NAME.checkpoint, which is removed at the end. A file
    that holds another training is refused.

    Example: `pellucid surrogate train --model resnet18 --weights resnet18.safetensors
    --images train.parquet -o surrogate.safetensors`
    """
    from ..training.from_source import SurrogateSettings, train_paths
    from ..training.hyperparameters import TrainingPrecision

    require_place(output, ".safetensors")
    require_choice("precision", precision, TrainingPrecision)
    settings = SurrogateSettings(
        model=model, weights=weights, source=tuple(images), count=limit, epochs=epochs, lr=lr,
        batch_size=batch_size, include_first=include_first, precision=cast("TrainingPrecision", precision),
        seed=seed,
    )  # fmt: skip
    with progress() as show:
        trained = train_paths(settings, output, chosen_device(device), show)
    if trained is None:
        say(ALREADY_FINISHED.format(output))
        return
    seconds, last = trained.facts["seconds"], sum(trained.facts["losses"][-1])
    say(f"{output}: {trained}, loss {last:.4f} after {counted(epochs, 'epoch')}, {seconds:.0f} s")
    show_noticed(_unreplaced(trained.facts))
    show_left_out("image", trained.facts["left_out"])


@surrogate.command("evaluate")
def _evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `surrogate train` wrote.")],
    images: _ImagesOption,
    model: ModelOption = "resnet50",
    weights: WeightsOption = None,
    method: Annotated[str, typer.Option(help="Whose maps are compared.")] = "gradient",
    layers: Annotated[list[str] | None, typer.Option(help="As for `explain`.", show_default="all")] = None,
    include_first: Annotated[
        bool, typer.Option("--include-first", help="Use the path of the first convolution, too.")
    ] = False,
    label_column: Annotated[str | None, typer.Option(help="A table's column of labels, for top-1.")] = None,
    limit: _LimitOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the method's noise.")] = 0,
    max_batch: Annotated[str, MAX_BATCH] = "32",
    device: Annotated[str, DEVICE] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .json file for the numbers.")
    ] = None,
) -> None:
    """Compare a surrogate with the original: predictions, and total variation and checkerboard of a method's maps.

    Explained is the true class where labels are known, else the original's prediction.

    Example: `pellucid surrogate evaluate surrogate.safetensors --model resnet18 --weights resnet18.safetensors
    --images val.parquet --label-column imagenet_label`
    """
    from ..experiments.noticing import summed
    from ..findings.wording import begun
    from ..models.zoo import load_network
    from ..passes import most_rows
    from ..training.from_source import opened
    from ..variants.surrogate import load_surrogate

    bound = checked_max_batch(max_batch)
    if output is not None:
        require_place(output, ".json")
    known = load_surrogate(file)
    loaded = load_network(model, weights)
    sources = opened(images, limit, label_column)
    show_noticed(_known_images(known.facts, file, model, weights, list(sources)))
    show_noticed(_unreplaced(known.facts))
    labeled = label_column is not None or _call_classes_alike(sources, loaded)
    left_out = {place: _unusable(source, labeled) for place, source in sources.items()}
    reasons = [reason for wrong in left_out.values() for reason in wrong.values()]
    if len(reasons) == sum(map(len, sources.values())):
        raise InvalidImage(f"none of {len(reasons)} images can be read; the first: {reasons[0]}")
    with TemporaryDirectory() as folder:
        changed = Path(folder, "surrogate.safetensors")
        replace(known, include_first=known.include_first or include_first).save(changed)
        spec = {
            "models": [{"name": model, "weights": weights}],
            "methods": [method],
            "variants": ["original", str(changed)],
            "layers": parted(layers or ["all"]),
            "metrics": [*_COMPARED, *(["top1"] if labeled else [])],
            "target": "label" if labeled else "scored",
            "pictures": 0,
            "seed": seed,
            "images_per_cell": most_rows(bound),
            "max_batch": bound,
            "device": chosen_device(device),
        }
        kept = {place: len(source) - len(left_out[place]) for place, source in sources.items()}
        chosen = [
            {"source": place, "count": count, "skip": list(left_out[place]), "label_column": label_column}
            for place, count in kept.items()
            if count
        ]
        specs = [spec | {"images": some} for some in chosen]
        table = _measured(specs, folder)
        changed_answers = summed(map(_answering, specs))
    results = _compared(table)
    _show(results, model, method)
    for change in changed_answers.values():
        say(begun(change.told("the surrogate")))
    show_left_out("image", reasons)
    if output is not None:
        _write(output, results | {"surrogate": dict(known.facts), "left_out": reasons})


def _call_classes_alike(sources: Mapping[str, Source], loaded: LoadedModel) -> bool:
    """Whether images name their classes as the model does: a data set may number them otherwise.

    Of images that name others it is said that nobody can tell how often they are recognized.
    """
    classes = set(loaded.classes or ())
    called = {place: source.classes or () for place, source in sources.items()}
    alike = all(names and {*names} <= classes for names in called.values())
    ways = dict.fromkeys(_way_to_labels(place, names, loaded) for place, names in called.items() if names)
    if not alike and ways:
        say(
            "note: how often each is right is not told, since the images' classes are not called as the model's; "
            + "; ".join(ways),
            err=True,
        )
    return alike


def _way_to_labels(place: str, names: Sequence[str], loaded: LoadedModel) -> str:
    """How images of classes with other names than the model's may get labels: a table has no folders to rename."""
    from .photos import is_tabular

    if not is_tabular(place):
        return "name their folders so"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # nothing is taken in order here
        numbers = loaded.numbers_of(names, required=False)
    if numbers is None:
        return "take images of the model's classes"
    return "if they are in the model's order, name the table's column of labels, as by --label-column label"


def _unreplaced(facts: Mapping[str, Any]) -> Iterator[str]:
    """What else than strided convolutions prints a lattice, as far as the surrogate's file tells."""
    from ..findings.wording import joined

    found = facts.get("unreplaced")
    if isinstance(found, dict) and found:
        names = [f"{_STEPPING.get(name, name)} ({count} a pass)" for name, count in found.items()]
        yield (
            f"the network also takes one place of several by {joined(names)}, which a surrogate leaves as it is, "
            "so that maps below may keep a lattice; the backward variant levels it, too"
        )


def _known_images(
    facts: Mapping[str, Any], file: Path, model: str, weights: str | None, places: Sequence[str]
) -> Iterator[str]:
    """Which of the images the surrogate, or the network, was trained on, as far as their files tell."""
    from ..files import told_whole
    from ..training.from_source import learned_from

    told = [("the surrogate", facts, file)]
    if weights is not None:
        with suppress(OSError, ValueError):  # none are beside the weights, or another program's
            told.append((model, told_whole(Path(weights).with_suffix(".json")), Path(weights)))
    for name, known, path in told:
        for place in learned_from(known, places, path):
            yield (
                f"{name} was trained on images of {place}, so that it answers better here than on others; "
                "evaluate on images that it has not seen"
            )


def _unusable(source: Source, labeled: bool) -> dict[str, str]:
    """What is wrong with images that cannot be read, by their names; that a label is missing is an error."""
    from ..experiments.inputs import survey

    def problem(sample: Sample) -> str:
        if labeled and sample.label is None:
            raise InvalidData(f"{sample.name} has no label; leave out --label-column, or the image")
        return ""

    return survey(source, len(source), problem)[1]


def _measured(specs: Sequence[Mapping[str, Any]], folder: str) -> pd.DataFrame:
    """The results of benchmarks in one table; what fails in one ends all."""
    import pandas as pd

    from ..experiments.runners import benchmark
    from ..experiments.spec import read_spec
    from ..findings.wording import results_notes

    tables = []
    with progress() as show:
        for number, spec in enumerate(specs):
            run = Path(folder, str(number))
            results = benchmark(read_spec(None, spec), run, advance=lambda *done: show("evaluating", *done))
            if results.failed:
                raise PellucidError(next(iter(results.failed.values())))
            show_noticed(results_notes(results))
            tables.append(results.table.astype({"metric": str, "variant": str, "layer": str}))
    return pd.concat(tables)


def _answering(told: Mapping[str, Any]) -> Mapping[str, Change]:
    """How the surrogate answers on a benchmark's images, some at a time."""
    from ..experiments import inputs
    from ..experiments.noticing import changes_of, summed
    from ..experiments.spec import read_spec

    spec = read_spec(None, told)
    parsed, model, cut = inputs.parsed(spec), spec.models[0].key, told["images_per_cell"]
    parts = (
        batch
        for start in range(0, len(inputs.chosen(spec.images)), cut)
        for batch in inputs.batches(spec, model, start, start + cut)
    )
    return summed(changes_of(parsed, batch) for batch in parts)


def _compared(table: pd.DataFrame) -> dict[str, Any]:
    """Means over images, and standard deviations (over the images themselves, without correction)."""
    values = table.groupby(["metric", "variant"], sort=False)["value"]
    differences = {
        "difference over all classes": values.get_group(("prediction_difference", "surrogate")),
        "difference at the target": values.get_group((_AT_TARGET, "surrogate")),
    }
    top1 = {
        which: values.get_group(("top1", which)).mean() for which in _ORDER if ("top1", which) in values.groups
    }
    return {
        "images": len(differences["difference at the target"]),
        "top1": {which: float(share) for which, share in top1.items()},
        "prediction_difference": {
            name: {"mean": float(found.mean()), "std": float(found.std(ddof=0))}
            for name, found in differences.items()
        },
        "total_variation": {
            str(layer): {
                "original": _known(before),
                "surrogate": _known(after),
                "reduction": _known(1 - after / before) if before else None,
            }
            for layer, before, after in _by_layer(table, "total_variation")
        },
        "checkerboard": {
            str(layer): {"original": _known(before), "surrogate": _known(after)}
            for layer, before, after in _by_layer(table, "checkerboard")
        },
    }


def _by_layer(table: pd.DataFrame, metric: str) -> Iterator[tuple[str, float, float]]:
    """Each layer with a metric's mean over images, of the original and of the surrogate."""
    means = table[table["metric"] == metric].groupby(["layer", "variant"], sort=False)["value"].mean()
    yield from means.unstack(sort=False)[list(_ORDER)].itertuples(name=None)


def _known(value: float) -> float | None:
    """A number, or None where all maps are constant."""
    return None if math.isnan(value) else float(value)


def _show(results: dict[str, Any], model: str, method: str) -> None:
    """Print the comparison."""
    say(f"{model} and its surrogate on {counted(results['images'], 'image')}")
    for which, share in results["top1"].items():
        say(f"top-1 {which}: {share:.2%}")
    for name, values in results["prediction_difference"].items():
        say(
            f"{_DIFFERENCES[name]}: {values['mean']:.1f} points on average over the images, "
            f"with a standard deviation of {values['std']:.1f}"
        )
    title = f"Total variation of {escape(method)}, and its checkerboard: the share that repeats every 2 pixels"
    patterned = (f"checkerboard, {which}" for which in _ORDER)
    table = Table("layer", *_ORDER, "reduction", *patterned, title=title, title_justify="left")
    reductions = []
    for layer, values in results["total_variation"].items():
        reduction = values["reduction"]
        reductions += [] if reduction is None else [reduction]
        share = "" if reduction is None else f"{reduction:.1%}"
        varied, repeated = map(_cells, (values, results["checkerboard"][layer]))
        table.add_row(layer, *varied, share, *repeated)
    if reductions:
        table.add_row("mean", "", "", f"{sum(reductions) / len(reductions):.1%}", "", "")
    show_whole(table, keys=1)


def _cells(values: Mapping[str, float | None]) -> list[str]:
    """A layer's values of the original and of the surrogate as a table shows them."""
    found = [values[which] for which in _ORDER]
    return ["undefined" if value is None else f"{value:.3f}" for value in found]


def _write(path: Path, results: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    from ..files import replace_file

    try:
        text = json.dumps(results, indent=2, allow_nan=False)
    except ValueError as error:
        raise OutputNotWritable(f"{path}: a value is not finite, which JSON cannot hold") from error
    replace_file(path, (text + "\n").encode())
