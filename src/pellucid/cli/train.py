"""The command ``train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidParameter, OutputNotWritable
from .terminal import progress

training = typer.Typer(no_args_is_help=True, help="Train a network of this package.")


@training.command("shapes")
def train_shapes_resnet(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
    ] = Path("shapes-resnet.safetensors"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 12,
    count: Annotated[int, typer.Option(min=16, help="Images to train with.")] = 8000,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
) -> None:
    """Train shapes-resnet on procedural images, as its included weights were.

    Example: `pellucid train shapes --epochs 3 --count 2000 -o mine.safetensors`
    """
    if output.suffix != ".safetensors":
        raise InvalidParameter(f"--output {output} does not end in .safetensors; weights are saved in that format")
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise OutputNotWritable(f"cannot write {output}; choose a folder that exists and that you may write to")
    from ..data.shapes import ShapesDataset
    from ..models.train import train_shapes

    with progress() as bar:
        task = bar.add_task("drawing images", total=None)

        def advance(done: int, steps: int, loss: float) -> None:
            bar.update(task, completed=done, total=steps, description=f"training, loss {loss:.3f}")

        drawn, held_out = ShapesDataset(count, seed=1), ShapesDataset(max(count // 8, 8), seed=2)
        report = train_shapes(drawn, held_out, output, epochs, seed, advance)
    typer.echo(f"{output}: accuracy {report.accuracy:.1%} on images of another seed, {report.seconds:.0f} s")
