"""What a run of ``explain`` noticed, as sentences: told once on the terminal, and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import counted
from ..experiments.cells import layers_noted
from ..models.preprocess import is_assumed
from ..models.weights import is_untrained
from .photos import PhotoFacts
from .run import ExplainRun
from .terminal import notes_told

_POOR, _CLOSE = (15.0, 0.8), (5.0, 0.95)  # of variants: points of probability moved, share of equal predictions


def noticed(run: ExplainRun) -> list[str]:
    """All that whoever looks at the maps should know."""
    parts = (_of_model(run), _of_photos(run), _of_variants(run), _of_methods(run))
    return [sentence for part in parts for sentence in part]


def _of_model(run: ExplainRun) -> Iterator[str]:
    loaded, is_file = run.loaded, ".py:" in run.loaded.name
    if loaded.weights == "random" and not is_file:
        yield f"{loaded.name} has random weights; give --weights FILE or DEFAULT"
    elif loaded.weights == "random" and is_untrained(loaded.model):
        yield (
            f"{loaded.name} looks untrained: its weights lie as they are drawn at the start, so the maps tell "
            "nothing of a trained network; load its weights in the file or give --weights FILE"
        )
    if run.request.target == "auto" and run.found.photos[0].target.value is not None:
        yield "one output is explained as a value; name a classifier's two answers: --classes no,yes"
    yield from run.found.wrong.values()
    if loaded.classes is None and run.found.photos[0].target.value is None:
        yield "classes are told by number, since nothing says their names; give --classes FILE or A,B,C"
    if run.named_by_folders:
        yield f"the model's {len(loaded.classes or ())} classes are called as the photos' folders, in their order"
    preprocess = loaded.preprocess
    if is_file and run.request.preprocess is None and is_assumed(preprocess):
        yield (
            f"the model's file has no preprocess: photos are {preprocess.in_words}; "
            "say otherwise by --preprocess none or FILE.py:NAME"
        )


def _of_photos(run: ExplainRun) -> Iterator[str]:
    for what, way_out, count in run.found.odd.values():
        yield f"{what} ({counted(count, 'such photo')})" + (f"; {way_out}" if way_out else "")


def _of_variants(run: ExplainRun) -> Iterator[str]:
    photos = run.found.photos
    for name in photos[0].variants if photos[0].target.value is None else ():
        moved = 100 * np.mean([abs(one.target.amount - one.variants[name].target.amount) for one in photos])
        same = sum(one.predicted.number == one.variants[name].predicted.number for one in photos)
        yield (
            f"under {name} the network is another: it moves the explained class's probability by {moved:.1f} "
            f"points on average and predicts as the original for {same} of {counted(len(photos), 'photo')}: "
            f"{verdict_on(float(moved), same / len(photos))}"
        )


def verdict_on(points: float, same: float) -> str:
    """Whether maps of another network speak for the original one."""
    if points <= _CLOSE[0] and same >= _CLOSE[1]:
        return "close to the original, so that its maps speak for it"
    if points > _POOR[0] or same < _POOR[1]:
        return "a poor stand-in, whose maps do not explain the original network"
    return "a fair stand-in; mind the difference"


def _of_methods(run: ExplainRun) -> Iterator[str]:
    for (warning, method), layers in layers_noted(run.found.notes).items():
        told = notes_told({(warning, method): layers}, "photo")[0]
        if warning == "CompletenessWarning":
            names = [name for name, text in run.request.texts.items() if text == method]
            largest = _largest(run.found.photos, names, layers)
            told += f", see residuals in run.json (the largest is {largest:.3g} logits)"
        yield told


def _largest(photos: Sequence[PhotoFacts], names: Sequence[str], layers: Sequence[str]) -> float:
    """The largest residual of a method at some layers, in logits."""
    residuals = [item for facts in photos for item in facts.residuals.items()]
    return max(
        float(abs(value)) for key, value in residuals if key.split("/")[0] in names and key.split("/")[1] in layers
    )
