"""The command ``train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InvalidParameter, require_choice, shortened
from .options import DEVICE, WEIGHTS_FILE, chosen_device
from .output import require_place
from .terminal import ALREADY_FINISHED, progress, say, show_left_out

if TYPE_CHECKING:
    from ..training.from_source import Trained
    from ..training.hyperparameters import TrainingPrecision


def train_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A network (`pellucid list models`), `shapes` for shapes-resnet, or your own `file.py:function`.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="Labelled images: a folder of classes, Parquet (of unet with masks), torchvision:NAME.",
        ),
    ] = "",
    test: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="Images that are scored, never learned from; torchvision's own if left out.",
        ),
    ] = "",
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table's column of labels; `label` if left out.")
    ] = None,
    output: Annotated[Path | None, WEIGHTS_FILE] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images; else the network's.")] = None,
    count: Annotated[int | None, typer.Option(min=16, help="Images taken at random; else all.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Images enter at this size, as tiles do; else as the network's own.")
    ] = None,
    shuffle: Annotated[
        bool | None, typer.Option(help="A new order in each epoch; else the network's way.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="`full`, or `bfloat16`, faster where the processor has units for it.")
    ] = None,
    adversarial: Annotated[
        float | None,
        typer.Option(metavar="EPSILON", help="Train robustly: pixels in [0, 1] are moved by as much."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, dropout and augmentation.")] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Train a network from scratch with its paper's settings; a run that was stopped goes on where it was.

    A file that holds another training is refused.

    Example: `pellucid train cifar-cnn --data cifar10/train.parquet --test cifar10/test.parquet -o cnn.safetensors`
    """
    name = "shapes-resnet" if name == "shapes" else name
    output = output or Path(f"{name.replace(':', '-')}.safetensors")
    require_place(output, ".safetensors")
    from ..training import hyperparameters
    from ..training.from_source import SHAPES, NetworkSettings, train_classifier

    if precision is not None:
        require_choice("precision", precision, hyperparameters.TrainingPrecision)
    if not data and name != SHAPES:
        raise InvalidParameter(f"{name} needs images: give --data with a folder, a table or torchvision:NAME")
    settings = NetworkSettings(
        name=name,
        source=data,
        test=test,
        label_column=label_column,
        count=count,
        size=size,
        epochs=epochs,
        shuffle=shuffle,
        precision=cast("TrainingPrecision | None", precision),
        adversarial=adversarial,
        seed=seed,
    )
    with progress() as show:
        trained = train_classifier(settings, output, chosen_device(device), show)
    if trained is None:
        say(ALREADY_FINISHED.format(output))
    else:
        _show(output, trained)


def _show(output: Path, trained: Trained) -> None:
    """Say how well the network does, and what was amiss in the data."""
    from ..training.from_source import ATTACKED

    report, train_set = trained.report, trained.train_set
    say(f"{output}: accuracy {report.accuracy:.1%} on {trained.validation_set!r}, {report.seconds:.0f} s")
    if (told := _no_better_than_guessing(trained)) is not None:
        say(f"note: {told}", err=True)
    facts = json.loads(output.with_suffix(".json").read_bytes())
    if "test_accuracy" in facts and facts["test_set"] != facts["validation_set"]:
        say(f"test accuracy {facts['test_accuracy']:.1%} on {facts['test_set']}")
    if report.robust is not None:
        moved = f"pixels moved by up to {report.recipe.adversarial:g} against it"
        say(f"robust accuracy {report.robust:.1%}: {moved}, {ATTACKED} images at most")
    if report.empty:
        names = [str(train_set.classes[label]) if train_set.classes else str(label) for label in report.empty]
        say(f"note: no training image is of {shortened(names)}", err=True)
    show_left_out("image", train_set.skipped)


def _no_better_than_guessing(trained: Trained) -> str | None:
    """That the accuracy reached is no better than always guessing the most frequent class; None where it is."""
    scored = trained.validation_set
    labels, counts = scored.labels.unique(return_counts=True)
    share = float(counts.max() / counts.sum())
    if trained.report.accuracy > share:
        return None
    most = int(labels[counts.argmax()])
    name = scored.classes[most] if most < len(scored.classes) else f"class {most}"
    return (
        f"always guessing the most frequent class, {name}, is right for {share:.1%}: the network has learned no "
        "more than that; give it more epochs (--epochs) or images, or another network"
    )
