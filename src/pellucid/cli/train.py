"""The command ``train``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidParameter, OutputNotWritable, shortened
from .request import chosen_device
from .terminal import counted, progress

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..data.labeled import LabeledImages
    from ..models.train import TrainingReport

SHAPES = "shapes-resnet"  # the network whose images are drawn, so that it needs no --data
SHAPES_COUNT = 8000
NAMED = ("torchvision:", "hf:")  # data sets that bring a test split along
MOST_NAMED = 20  # images left out whose reasons are shown; all are in the facts beside the weights


def train(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A network (`pellucid list models`), or shapes for shapes-resnet."),
    ],
    data: Annotated[
        str, typer.Option(metavar="SRC", help="Labelled images: a folder of classes, Parquet, torchvision:NAME.")
    ] = "",
    test: Annotated[
        str, typer.Option(metavar="SRC", help="Images scored in the end; torchvision's own if left out.")
    ] = "",
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The table's column of labels; `label` if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images; else the network's.")] = None,
    count: Annotated[int | None, typer.Option(min=16, help="Images taken at random; else all.")] = None,
    shuffle: Annotated[
        bool | None, typer.Option(help="A new order in each epoch; else the network's way.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, dropout and augmentation.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a network from scratch with its paper's settings; a run that was stopped goes on where it was.

    Example: `pellucid train cifar-cnn --data cifar10/train.parquet --test cifar10/test.parquet -o cnn.safetensors`
    """
    name = SHAPES if name == "shapes" else name
    output = output or Path(f"{name.replace(':', '-')}.safetensors")
    require_place(output)
    from ..models.recipes import recipe_of
    from ..models.train import train_network

    recipe = recipe_of(name)
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    recipe = recipe if shuffle is None else replace(recipe, shuffle=shuffle)
    with progress() as bar:
        reader = Reader(name, label_column, count, seed, output.absolute().parent, bar)
        train_set, test_set = reader.train_and_test(data, test)
        if test_set is None or recipe.keep == "best":
            train_set, validation_set = train_set.split(recipe.validation, seed)
        else:
            validation_set, test_set = test_set, None  # it chooses nothing, so it may be scored in each epoch
        task = bar.add_task("training", total=None)

        def advance(done: int, steps: int, loss: float) -> None:
            bar.update(task, completed=done, total=steps, description=f"training, loss {loss:.3f}")

        where = chosen_device(device)
        report = train_network(
            name, train_set, output, validation_set, test_set, recipe, seed, where, advance
        )  # fmt: skip
    show(output, train_set, validation_set, report)


def show(output: Path, train_set: LabeledImages, validation_set: LabeledImages, report: TrainingReport) -> None:
    """Say how well the network does, and what was amiss in the data."""
    typer.echo(f"{output}: accuracy {report.accuracy:.1%} on {validation_set!r}, {report.seconds:.0f} s")
    if report.empty:
        names = [str(train_set.classes[label]) if train_set.classes else str(label) for label in report.empty]
        typer.echo(f"note: no training image is of {shortened(names)}", err=True)
    if train_set.skipped:
        typer.echo(f"left out {counted(len(train_set.skipped), 'image')}:", err=True)
        for message in train_set.skipped[:MOST_NAMED]:
            typer.echo(f"  {message}", err=True)


@dataclass(frozen=True)
class Reader:
    """Reads the images of one training, cropped as its network wants them."""

    name: str
    label_column: str | None
    count: int | None
    seed: int
    folder: Path
    bar: Progress

    def train_and_test(self, data: str, test: str) -> tuple[LabeledImages, LabeledImages | None]:
        """The images to train with, and those to score in the end, if there are any."""
        if not data and self.name == SHAPES:
            return self.drawn()
        if not data:
            raise InvalidParameter(
                f"{self.name} needs images: give --data with a folder, a table or torchvision:NAME"
            )
        test = data if not test and data.startswith(NAMED) else test
        return self.read(data, "train", self.count), self.read(test, "test") if test else None

    def drawn(self) -> tuple[LabeledImages, LabeledImages]:
        """Procedural shapes, as the included weights were trained and scored with."""
        from ..data.shapes import ShapesDataset

        count = self.count or SHAPES_COUNT
        sets = ShapesDataset(count, seed=1), ShapesDataset(max(count // 8, 8), seed=2)
        drawn, held_out = (self.read(images, "train") for images in sets)
        return drawn, held_out

    def read(self, spec: Any, split: str, count: int | None = None) -> LabeledImages:
        """Decode the images of one place, or as many, drawn at random."""
        from ..data.labeled import load_images, shuffled
        from ..data.sources import open_images
        from ..models.zoo import find_architecture

        source = open_images(spec, self.label_column, split)
        drawn = None if count is None else sorted(shuffled(len(source), self.seed)[:count].tolist())
        task = self.bar.add_task("reading images", total=len(drawn or source))
        images = load_images(
            source,
            find_architecture(self.name).preprocess.display,
            origin=f"{spec} ({split})" if str(spec).startswith(NAMED) else str(spec),
            positions=drawn,
            folder=self.folder,
            progress=lambda done, total: self.bar.update(task, completed=done),
        )
        self.bar.remove_task(task)
        return images


def require_place(output: Path) -> None:
    """Refuse a file that could not be written, before the work begins."""
    if output.suffix != ".safetensors":
        raise InvalidParameter(f"--output {output} does not end in .safetensors; weights are saved in that format")
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise OutputNotWritable(f"cannot write {output}; choose a folder that exists and that you may write to")
