"""What a person has and does: a folder, photos, a file of a model, commands typed there."""

import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.data.shapes import ShapesDataset

# A network with strides, blocks and a classifier, as small as can be; what a person would call their model.
MODEL = """
from torch import nn
from pellucid.models.preprocess import Preprocess

{extra}


def block(before, after, stride):
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def network():
    return nn.Sequential(
        block({channels}, 6, 2), block(6, 8, 1), block(8, 8, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, {classes}),
    )
"""


def write_model(path: str, extra: str = "", channels: int = 3, classes: int = 2) -> None:
    """A model's file."""
    Path(path).write_text(MODEL.format(extra=extra, channels=channels, classes=classes))


def network(path: str) -> nn.Module:
    """The network of such a file, with weights that depend on nothing but the seed."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(Path(path).read_text(), names)
    model: nn.Module = names["network"]()
    return model.eval()


def pictures(count: int, size: int = 64) -> list[Image.Image]:
    """Photos, so to speak."""
    shapes = ShapesDataset(count, size=size)
    return [
        Image.fromarray(np.ascontiguousarray(shapes[n][0].permute(1, 2, 0).mul(255).byte().numpy()))
        for n in range(count)
    ]


def typed(command: str, code: int = 0) -> str:
    """What a command prints, in one line; it must end with this code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # notes are no errors to a person
        result = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # an error of no user's
    assert result.exit_code == code, f"{command}\n{result.output}"
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def facts(folder: str) -> dict[str, Any]:
    """What run.json says."""
    found: dict[str, Any] = json.loads(Path(folder, "run.json").read_text())
    return found
