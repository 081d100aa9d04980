"""What makes maps say less than they seem to, of models, images and variants: the same for every command."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from ..data.sources import Sample
from ..errors import PellucidError, counted, percent, shortened
from ..models.preprocess import Preprocess
from ..models.weights import is_untrained
from ..models.zoo import LoadedModel
from ..outputs import likelihoods
from ..pixels import Pixels, frames_of
from ..variants.base import ORIGINAL, Variant
from .inputs import Batch, ParsedSpec
from .record import Change
from .spec import shown

Odd = Mapping[str, tuple[str, str]]
"""What is odd about an image, and what to do, by kind."""
Counts = dict[str, list[Any]]
"""What is odd about the first image of a kind, what to do, and how many such images there are."""

_MUCH = 4  # times smaller
_SEEN = 0.5  # of an image's area, within the crop
_LABELED = 5  # images that tell whether classes are in another order


def of_model(loaded: LoadedModel) -> Iterator[str]:
    """What of a model makes its maps mean little."""
    is_file, name = ".py:" in loaded.name, shown(loaded.name)
    if loaded.weights == "random" and not is_file:
        yield f"{name} has random weights; give --weights FILE or DEFAULT"
    elif loaded.weights == "random" and is_untrained(loaded.model):
        yield (
            f"{name} looks untrained: its weights lie as they are drawn at the start, so the maps tell "
            "nothing of a trained network; load its weights in the file or give --weights FILE"
        )
    if loaded.assumption:
        yield (
            f"{loaded.assumption}: photos are {loaded.preprocess.in_words}; "
            "say otherwise by --preprocess whole, none or FILE.py:NAME"
        )
    if loaded.naming:
        yield f"{loaded.naming}; --classes names others"


def oddities(sample: Sample, preprocess: object) -> dict[str, tuple[str, str]]:
    """What a preprocess does to an image that may surprise: to its values, its size and its channels."""
    found, image = {}, sample.image
    if (frames := frames_of(image)) > 1:
        found["frames"] = (
            f"{sample.name} holds {frames} pages or frames, of which the first is seen",
            "save the others as files of their own, or what are channels as one .npy (height, width, channels)",
        )
    if not isinstance(preprocess, Preprocess):
        return found
    if isinstance(image, Pixels) and preprocess.is_dark(image):
        ends = f"{int(image.values.min())},{int(image.values.max())}"
        what = "uses little of what its bits can hold, so the model sees it nearly of one gray"
        found["dark"] = (
            f"{sample.name} {what}",
            f"give --scale, such as {ends}, this image's own ends; "
            "a trained model needs the range that it was trained with",
        )
    if lost := _lost(image.size, preprocess):
        what = f"{sample.name}, {image.size[0]} x {image.size[1]}, is {preprocess.in_words}"
        found[", ".join(lost)] = (
            f"{what}, so {' and '.join(lost.values())}",
            "cut it into tiles, or give --preprocess whole",
        )
    if recolored := preprocess.recolored(image):
        found[recolored] = (f"{sample.name} {recolored}", "")
    return found


def _lost(size: tuple[int, int], preprocess: Preprocess) -> dict[str, str]:
    """What an image (width, height) loses by being made smaller and cropped, in words, where it is much."""
    found, crop, times = {}, preprocess.crop, preprocess.times_smaller(size)
    if max(times) >= _MUCH:
        found["shrunk"] = "fine structures are lost"
    resized = [side / much for side, much in zip(size, times, strict=True)]
    seen = 1.0 if crop is None else math.prod(min(1.0, crop / side) for side in resized)
    if seen < _SEEN:
        found["cut"] = f"{percent(1 - seen)} of its area is cut off"
    return found


def mislabeled(
    labels: Iterable[int],
    predicted: Iterable[int],
    count: int,
    noun: str,
    what: str,
    classes: Sequence[str] | None = None,
    given: Sequence[str] = (),
) -> Iterator[str]:
    """Say so where far fewer predictions than by chance are the labels: the classes' order is likely another.

    At least ``_LABELED`` labels must be known; ``count`` is how many classes there are, ``classes`` are the
    model's names of them, ``given`` those of the images.
    """
    pairs = [pair for pair in zip(labels, predicted, strict=True) if pair[0] >= 0]
    right = sum(label == one for label, one in pairs)
    if count > 1 and len(pairs) >= _LABELED and right < len(pairs) / count / 2:
        of = counted(len(pairs), noun)
        model = f"the model's are {shortened(classes, 6)}; --classes names others" if classes else "--classes"
        images = f"; the {what}s' {shortened(given, 6)}" if given else ""
        told = f"{right} of {of} are predicted as their {what}"
        yield f"{told}: is the order of classes right? ({model}{images})"


def count_odd(counts: Counts, odd: Odd) -> None:
    """Count an image with those that are odd in the same way."""
    for kind, (what, way_out) in odd.items():
        counts.setdefault(kind, [what, way_out, 0])[2] += 1


def of_images(counts: Counts, noun: str = "image") -> Iterator[str]:
    """What is odd about images, a sentence for each kind."""
    for what, way_out, count in counts.values():
        yield f"{what} ({counted(count, f'such {noun}')})" + (f"; {way_out}" if way_out else "")


def may_answer_otherwise(variant: Variant) -> bool:
    """Whether the network under a variant is another, and not its gradient alone."""
    return not all(rule.alters_gradient for rule in variant.rules)


def changes_of(parsed: ParsedSpec, batch: Batch) -> dict[str, Change]:
    """How variants that may answer otherwise change the answers to a batch."""
    found = {}
    for name, variant in parsed.variants.items():
        with suppress(PellucidError):  # what does not work on this model is told by whatever explains under it
            found[name] = change_under(variant, batch)
    return {name: change for name, change in found.items() if change is not None}


def change_under(variant: Variant, batch: Batch) -> Change | None:
    """How a variant changes the answers to a batch; None if it cannot, or what is asked has one output.

    A class's probability is followed: the label's where that is explained, else the highest one's.
    """
    if not may_answer_otherwise(variant):
        return None
    logits = batch.scorer(ORIGINAL).logits_of(batch.images)
    if logits.shape[1] < 2:
        return None
    is_label = batch.spec.target == "label" and batch.labels is not None
    targets = batch.labels if is_label and batch.labels is not None else logits.argmax(1)
    return change_between(logits, batch.scorer(variant).logits_of(batch.images), targets)


def change_between(logits: Tensor, changed: Tensor, targets: Tensor) -> Change:
    """The change from logits (B, K) to others, for the explained classes (B,)."""
    before, after = (likelihoods(one).gather(1, targets[:, None]) for one in (logits, changed))
    same = int((logits.argmax(1) == changed.argmax(1)).sum())
    return Change(100 * float((before - after).abs().sum()), same, len(logits))


def summed(changes: Iterable[Mapping[str, Change]]) -> dict[str, Change]:
    """The changes of several parts of the images together, by variant."""
    found: dict[str, Change] = {}
    for one in changes:
        for name, change in one.items():
            found[name] = found.get(name, Change()) + change
    return found


def added(counts: Iterable[Counts]) -> Counts:
    """The counts of several parts of the images together."""
    found: Counts = {}
    for one in counts:
        for kind, (what, way_out, count) in one.items():
            found.setdefault(kind, [what, way_out, 0])[2] += count
    return found
