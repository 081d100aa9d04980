"""Flips bytes of stored files: what is read is what was written, or is refused, and doctor names it."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typer.testing import CliRunner

from pellucid.cli.doctor import examined
from pellucid.cli.program import app
from pellucid.errors import PellucidError
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from pellucid.files import told_whole
from pellucid.models.weights import read_facts, read_state_dict
from pellucid.models.zoo import load_model
from pellucid.training.checkpoints import Checkpoint, Checkpoints, read
from pellucid.training.classifiers import save_weights
from pellucid.training.surrogates import train_surrogate
from pellucid.variants.surrogate import load_surrogate

SPEC: dict[str, Any] = {
    "models": ["shapes-resnet"],
    "images": {"source": "shapes:3"},
    "methods": ["gradient"],
    "layers": ["input", "layer2.0"],
    "metrics": ["total_variation"],
    "images_per_cell": 1,
    "pictures": 1,
}
HEALED = 150  # of so many flips in a run, one is healed by the same command


def flips(count: int) -> tuple[int, Counter[str]]:
    """Flip ``count`` bytes, one at a time; how many were, and what was wrong."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _flipped(Path(place), count)


def _flipped(place: Path, count: int) -> tuple[int, Counter[str]]:
    readers = _stored(place)
    drawn, wrong = random.Random(0), Counter()
    expected = {path: read(path) for path, read in readers.items()}
    paths = list(readers)
    for number in range(count):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        at, by = drawn.randrange(len(content)), drawn.randrange(1, 256)
        path.write_bytes(content[:at] + bytes([content[at] ^ by]) + content[at + 1 :])
        try:
            for what in _amiss(place, path, readers[path], expected[path], heal=number % HEALED == 0):
                wrong[f"{path.parent.name}/{path.suffix}: {what}"] += 1
        finally:
            path.write_bytes(content)
    return count, wrong


def _stored(place: Path) -> dict[Path, Callable[[Path], Any]]:
    """Files of every kind that commands write, each with how it is read."""
    net = load_model("shapes-resnet")
    benchmark(read_spec(None, SPEC), place / "run")
    CliRunner().invoke(app, ["explain", "shapes:2", "--model=shapes-resnet", "-o", str(place / "out")])
    save_weights(net.model, place / "net.safetensors", {"classes": ["a"]})
    small = Checkpoint.of({"loss": 1.0}, network=torch.nn.Linear(30, 20).state_dict())
    Checkpoints(place / "net.checkpoint", {"seed": 0}).write(1, small)
    images = torch.rand(4, 3, 64, 64)
    train_surrogate(net.model, images, 1, preprocess=net.preprocess).save(place / "paths.safetensors")
    found: dict[Path, Callable[[Path], Any]] = {place / "run" / "run.json": _results}
    found |= dict.fromkeys(sorted((place / "run").glob("*/*.parquet")), _results)
    found |= dict.fromkeys(sorted(path for path in (place / "out").rglob("*") if path.is_file()), _of_output)
    found |= dict.fromkeys((place / "net.safetensors", place / "net.json"), _weights)
    found[place / "net.checkpoint" / "epoch-00001.safetensors"] = _checkpoint
    found[place / "paths.safetensors"] = _surrogate
    return found


def _amiss(place: Path, path: Path, reader: Callable[[Path], Any], expected: Any, heal: bool) -> list[str]:
    """What is wrong with how a flipped byte is met."""
    try:
        found = reader(path)
    except PellucidError:
        found = None
    except Exception as error:
        return [f"traceback: {type(error).__name__}: {error}"]
    wrong, equal = [], found is not None and _equal(found, expected)
    if found is not None and not equal and not (reader is _results and _part_of(found, expected)):
        wrong.append("other values")
    at = path.parents[1] if path.parent.name in ("parts", "pictures") else path.parent
    for candidate in path.parents:
        if candidate.parent == place:
            at = candidate
    where = path if path.parent == place else at
    named = examined(str(where.with_suffix(".safetensors") if where.name == "net.json" else where)).amiss
    if not named and not equal:
        wrong.append("not named by doctor")
    if heal and reader is _results:
        with_again = benchmark(read_spec(None, SPEC), place / "run").table
        if not with_again.equals(expected[0]):
            wrong.append("not healed")
    return wrong


def _results(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    results = Results.read(path.parent if path.name == "run.json" else path.parents[1])
    return results.table, results.pictures


def _of_output(path: Path) -> Any:
    folder = next(one for one in path.parents if (one / "run.json").exists())
    try:
        return told_whole(folder / "run.json")
    except (OSError, ValueError) as error:
        raise PellucidError(str(error)) from error


def _weights(path: Path) -> Any:
    path = path.with_suffix(".safetensors")
    return read_facts(path), {name: value.tolist() for name, value in read_state_dict(path).items()}


def _checkpoint(path: Path) -> Any:
    found = read(path)
    if found is None:
        raise PellucidError("damaged")
    return found[0], found[1].facts, {name: value.tolist() for name, value in found[1].tensors.items()}


def _surrogate(path: Path) -> Any:
    found = load_surrogate(path)
    kept = [path and [tensor.tolist() for tensor in path.tensors.values()] for path in found.paths]
    return dict(found.facts), found.convolutions, kept


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(found, tuple) and isinstance(found[0], pd.DataFrame):
        return all(one.equals(other) for one, other in zip(found, expected, strict=True))
    return bool(found == expected)


def _part_of(found: Any, expected: Any) -> bool:
    """Whether tables hold nothing but rows of others."""
    rows = [{*map(str, one.itertuples(index=False, name=None))} for one in (*found, *expected)]
    return rows[0] <= rows[2] and rows[1] <= rows[3]
