"""A training's state after an epoch as one file: a surrogate's, with Adam's moments beside the paths."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidParameter, InvalidWeights, OutputNotWritable
from ..files import replace_file
from .paths import BilinearPath
from .variant import Surrogate, decoded, encoded

Paths = Sequence[BilinearPath | None]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# What a training must share with a checkpoint to go on from it; it may run for more epochs.
SETTINGS = ("images", "batch_size", "lr", "seed")


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one stands."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(path: Path, surrogate: Surrogate, moments: Mapping[str, Tensor]) -> None:
    """Write a checkpoint in one move, and keep the one before it.

    Raises:
        OutputNotWritable: the folder is missing or cannot be written.
    """
    content = encoded(surrogate, moments)
    if path.exists():
        try:
            os.replace(path, previous(path))
        except OSError as error:
            raise OutputNotWritable(f"cannot keep {path} as {previous(path).name}: {error.strerror}") from error
    replace_file(path, content)


def read_checkpoint(path: Path, surrogate: Surrogate) -> tuple[Surrogate, dict[str, Tensor]] | None:
    """The last checkpoint that can be read, with its moments; None if there is none.

    ``surrogate`` is the training that wants to go on, before its first epoch.

    Raises:
        InvalidWeights: there are checkpoints, but none can be read.
        InvalidParameter: it is of another training.
    """
    broken = None
    for place in (path, previous(path)):
        if not place.exists():
            continue
        try:
            found, moments = decoded(place)
        except InvalidWeights as error:
            broken = broken or error
            continue
        _require_same(place, found, surrogate)
        return found, moments
    if broken is not None:
        raise InvalidWeights(f"{broken}; no earlier checkpoint can be read, so remove it to start anew")
    return None


def _require_same(place: Path, found: Surrogate, wanted: Surrogate) -> None:
    def settings(surrogate: Surrogate) -> dict[str, Any]:
        trained = [number for number, path in enumerate(surrogate.paths) if path is not None]
        return {name: surrogate.facts.get(name) for name in SETTINGS} | {
            "convolutions": surrogate.convolutions,
            "include_first": 0 in trained,
        }

    there, here = settings(found), settings(wanted)
    for name, value in here.items():
        if there[name] != value:
            what = "is of another model" if name == "convolutions" else f"has {name} {there[name]}, not {value}"
            raise InvalidParameter(
                f"checkpoint {place} {what}; name another checkpoint, or remove it to start anew"
            )


def moments_of(optimizer: torch.optim.Optimizer, paths: Paths) -> dict[str, Tensor]:
    """Adam's moments of the paths' tensors, by name; none before the first step."""
    return {
        f"adam{index}.{name}.{moment}": state[moment]
        for index, path in enumerate(paths)
        if path is not None
        for name, tensor in path.tensors.items()
        if (state := optimizer.state.get(tensor))
        for moment in MOMENTS
    }


def restore_moments(optimizer: torch.optim.Optimizer, paths: Paths, moments: Mapping[str, Tensor]) -> None:
    """Give Adam the moments that ``moments_of`` named."""
    for index, path in enumerate(paths):
        for name, tensor in {} if path is None else path.tensors.items():
            if f"adam{index}.{name}.step" in moments:
                state = {moment: moments[f"adam{index}.{name}.{moment}"] for moment in MOMENTS}
                # As Adam keeps them: counted on the CPU, else beside the parameter and in its layout.
                optimizer.state[tensor] = {
                    moment: value if moment == "step" else torch.empty_like(tensor).copy_(value)
                    for moment, value in state.items()
                }
