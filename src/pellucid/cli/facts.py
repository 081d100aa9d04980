"""The facts in run.json: everything that is needed to make a call of ``explain`` again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..experiments.inputs import digest_of_model
from ..files import file_facts
from ..models.zoo import has_own_weights, weights_facts
from .noticed import noticed
from .output import origin
from .photos import PhotoFacts
from .request import Request
from .run import ExplainRun


def run_facts(run: ExplainRun) -> dict[str, Any]:
    """Everything about one call of ``explain``."""
    request = run.request
    return origin(request.command) | {
        "python": _python_program(request, run.found.photos, run.named.classes if run.named_by_folders else None),
        "title": request.title,
        "device": request.device,
        "seed": request.seed,
        "max_batch": request.max_batch,
        "model": model_facts(run),
        "methods": {
            name: {"text": request.texts[name], "parameters": _described(method)}
            for name, method in request.methods.items()
        },
        "layers": run.found.layers,
        "variants": list(request.variants),
        "surrogates": {name: file_facts(Path(text), "file") for name, text in _surrogate_files(request).items()},
        "heatmap": request.heatmap,
        "photos": [facts.plain() for facts in run.found.photos],
        "left_out": run.left_out,
        "noticed": noticed(run),
    }


def model_facts(run: ExplainRun) -> dict[str, Any]:
    """The model: its weights, and what tells them from others where no file of them was named."""
    loaded = run.named
    is_own = has_own_weights(loaded.name)
    digests = {"digest": digest_of_model(loaded), "identity": run.found.model} if is_own else {}
    return {"name": loaded.name} | weights_facts(loaded) | digests | {"preprocess": loaded.preprocess.as_dict()}


def _surrogate_files(request: Request) -> dict[str, str]:
    """The files of the variants that are surrogates."""
    return {name: text for name, text in request.variant_texts.items() if text != name}


def _described(part: Any) -> Any:
    """A method, rule or sampling as plain values: its class and all parameters."""
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, tuple | list):
        return [_described(value) for value in part]
    if is_dataclass(part):
        values = {entry.name: getattr(part, entry.name) for entry in fields(part) if entry.init}
    else:
        values = {name.lstrip("_"): value for name, value in vars(part).items()}
        if not values:
            return type(part).__name__
    return {"class": type(part).__name__} | {name: _described(value) for name, value in values.items()}


def _python_program(request: Request, photos: Sequence[PhotoFacts], named: Sequence[str] | None) -> str:
    """The same run from Python."""
    places = [facts.place for facts in photos]
    by_name = (
        request.target if request.target not in ("auto", "label") and not request.target.isdecimal() else None
    )
    targets: Any = by_name or [facts.target.number for facts in photos]
    changed = {"preprocess": request.preprocess, "scale": request.scale or None}
    settings = ", ".join(f"{name}={value!r}" for name, value in changed.items() if value is not None)
    seeing = f"model = model.seeing({settings})\n" if settings else ""
    given = request.classes or named
    classes = "" if given is None else f", classes={list(given)!r}"
    layouts = f", layouts={dict(request.layouts)!r}" if request.layouts else ""
    surrogates = _surrogate_files(request)
    variants = [
        f"{name!r}: pl.load_surrogate({surrogates[name]!r})" if name in surrogates else f"{name!r}: {name!r}"
        for name in request.variants
    ]
    return f"""\
import torch

import pellucid as pl

model = pl.load_model({request.model!r}, weights={request.weights!r}{classes}, device={request.device!r})
photos = {places!r}
{seeing}samples = [pl.open_images(source)[index] for source, index in photos]
images = torch.stack([model.preprocess(sample.image) for sample in samples])
targets = {targets!r}
variants = {{{", ".join(variants)}}}
attributions = {{
    (text, name): pl.method(text)(
        model, images, targets, layers={request.layers!r},
        variant=variant, seed={request.seed!r}, max_batch={request.max_batch!r}{layouts},
    )
    for text in {list(request.texts.values())!r}
    for name, variant in variants.items()
}}
"""
