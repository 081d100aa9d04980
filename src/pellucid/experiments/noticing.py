"""What makes maps say less than they seem to, of models, images and variants: the same for every command."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..data.sources import Sample
from ..errors import PellucidError, counted, percent, shortened
from ..methods.caveats import pattern_of
from ..methods.checks import probabilities_of
from ..models.preprocess import PREPROCESS_INSTEAD, CustomPreprocess, Preprocess, clips
from ..models.weights import is_untrained
from ..models.zoo import LoadedModel
from ..pixels import Ends, Pixels, frames_of
from ..variants.base import ORIGINAL, Variant
from .inputs import Batch, ParsedSpec
from .record import Change
from .spec import shown


class Oddity(NamedTuple):
    """What is odd about an image, what to do, and of which values the ends that a scale needs are told."""

    what: str
    way_out: str = ""
    ends: Ends | None = None


Odd = Mapping[str, Oddity]
"""What is odd about an image, by kind."""
Counts = dict[str, list[Any]]
"""What is odd about the first image of a kind, what to do, how many such images there are, and their ends."""

_MUCH = 4  # times smaller
_SEEN = 0.5  # of an image's area, within the crop
_LABELED = 5  # images that tell whether classes are in another order


def of_model(loaded: LoadedModel) -> Iterator[str]:
    """What of a model makes its maps mean little."""
    is_file, name = ".py:" in loaded.name, shown(loaded.name)
    if loaded.weights == "random" and not is_file:
        yield f"{name} has random weights; give --weights FILE or DEFAULT"
    elif is_untrained(loaded.model):
        given = loaded.weights != "random"
        way = "give the weights after training" if given else "load its weights in the file or give --weights FILE"
        yield (
            f"{name} looks untrained: its weights lie as they are drawn at the start, so the maps tell "
            f"nothing of a trained network; {way}"
        )
    if loaded.assumption:
        yield (
            f"{loaded.assumption}: photos are {loaded.preprocess.in_words}; "
            "say otherwise by --preprocess whole, none or FILE.py:NAME"
        )
    if loaded.naming:
        yield f"{loaded.naming}; --classes names others"


def oddities(sample: Sample, preprocess: object, whole_of: Preprocess | None = None) -> dict[str, Oddity]:
    """What a preprocess does to an image that may surprise: to its values, its size and its channels.

    ``whole_of`` is what would resize it otherwise (``LoadedModel.whole_of``).
    """
    found: dict[str, Oddity] = {}
    image = sample.image
    if (frames := frames_of(image)) > 1:
        found["frames"] = Oddity(
            f"{sample.name} holds {frames} pages or frames, of which the first is seen",
            "save the others as files of their own, or what are channels as one .npy (height, width, channels)",
        )
    if isinstance(preprocess, CustomPreprocess):
        found |= _clipped(sample, preprocess)
    if not isinstance(preprocess, Preprocess):
        return found
    if isinstance(image, Pixels) and preprocess.is_dark(image):
        what = "uses little of what its bits can hold, so the model sees it nearly of one gray"
        way_out = "a trained model needs the range that it was trained with"
        found["dark"] = Oddity(f"{sample.name} {what}", way_out, image.ends)
    if share := preprocess.beyond(image):
        found["beyond"] = _beyond(sample, preprocess, share)
    if lost := _lost(image.size, preprocess):
        crop = preprocess.crop
        what = f"{sample.name}, {image.size[0]} x {image.size[1]}, is {preprocess.in_words}"
        # The kind names both losses, so that images that lose alike are counted together.
        found[", ".join(lost)] = Oddity(
            f"{what}, so {' and '.join(lost.values())}",
            "unless the network learnt from photos made as small, cut it into tiles"
            f"{'' if crop is None else f' of about {crop} x {crop}'}, or give --preprocess whole",
        )
    if whole_of is not None and (resized := _resized(image.size, whole_of)):
        what = f"{sample.name}, {image.size[0]} x {image.size[1]}, is seen at its own size"
        found["whole"] = Oddity(
            f"{what}; the model's own preprocess would resize it, and all that is in it, to {resized}",
            "if it learnt from parts of such images, keep their scale: --preprocess FILE.py:NAME, a "
            "Preprocess(resize=SIDE, crop=None), SIDE being the length of its shorter side at that scale",
        )
    if recolored := preprocess.recolored(image):
        found[recolored] = Oddity(f"{sample.name} {recolored}")
    return found


def _beyond(sample: Sample, preprocess: Preprocess, share: float) -> Oddity:
    """What is said of an image of which a share lies outside the scale."""
    low, high = map(_plain, (preprocess.scale or (0, 1))[:2])
    ends = sample.image.ends if isinstance(sample.image, Pixels) else None
    return Oddity(
        f"the model sees {percent(share)} of {sample.name} below 0 or above 1, outside the scale from {low} to "
        f"{high}, which pictures show as black or white",
        f"--scale={low},{high},clip clips them, as suits a model that learnt from clipped values",
        ends,
    )


def _clipped(sample: Sample, preprocess: CustomPreprocess) -> dict[str, Oddity]:
    """What a user's own function may have clipped to 8 bits."""
    image = sample.image
    if not isinstance(image, Pixels) or not clips(image, preprocess.quietly(image)):
        return {}
    low, high = map(_plain, image.ends)
    what = f"holds values from {low} to {high}, and the model's own preprocess makes nearly all of it"
    return {
        "clipped": Oddity(
            f"{sample.name} {what} black or white, as Pillow's convert clips 16 bits to 255",
            f"scale the values before, or give --preprocess FILE.py:NAME; {PREPROCESS_INSTEAD}",
        )
    }


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


def _resized(size: tuple[int, int], preprocess: Preprocess) -> str:
    """To how much of its size (width, height) an image is resized, in words; empty where it stays as large."""
    width, height = (f"{1 / times:.2g}" for times in preprocess.times_smaller(size))
    if width == height:
        return "" if width == "1" else f"{width} times that"
    return f"{width} times its width and {height} times its height"


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
    # By chance one of ``count`` predictions is right; half as many are hardly an accident of a bad network.
    if count > 1 and len(pairs) >= _LABELED and right < len(pairs) / count / 2:
        of = counted(len(pairs), noun)
        model = f"the model's are {shortened(classes, 6)}; --classes names others" if classes else "--classes"
        images = f"; the {what}s' {shortened(given, 6)}" if given else ""
        told = f"{right} of {of} are predicted as their {what}"
        yield f"{told}: is the order of classes right? ({model}{images})"


def mendable(odd: Odd) -> Odd:
    """What of it can be mended; that an image is gray, say, is what it is."""
    return {kind: told for kind, told in odd.items() if told.way_out}


def count_odd(counts: Counts, odd: Odd) -> None:
    """Count an image with those that are odd in the same way."""
    for kind, (what, way_out, ends) in odd.items():
        _add(counts, kind, [what, way_out, 1, *(ends or ())])


def _add(counts: Counts, kind: str, more: Sequence[Any]) -> None:
    """Add images that are odd in some way: how many they are, and how far the ends of their values reach."""
    known = counts.setdefault(kind, [*more[:2], 0, *more[3:]])
    known[2] += more[2]
    if known[3:] and more[3:]:
        known[3:] = min(known[3], more[3]), max(known[4], more[4])


def of_images(counts: Counts, noun: str = "image") -> Iterator[str]:
    """What is odd about images, a sentence for each kind."""
    for what, way_out, count, *ends in counts.values():
        told = [f"{what} ({counted(count, f'such {noun}')})"]
        if ends:
            of = f"this {noun}'s own ends" if count == 1 else f"the ends of these {count} {noun}s"
            told.append(f"give --scale, such as {','.join(map(_plain, ends))}, {of}")
        yield "; ".join([*told, way_out] if way_out else told)


def _plain(number: float) -> str:
    """A number without an exponent where it is a whole one."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def lattices(found: Mapping[str, Tensor], variants: Iterable[Variant]) -> list[str]:
    """The layers whose maps show a lattice; none where a variant is asked for that levels it, for it is known."""
    if any(rule.stays for variant in variants for rule in variant.rules):
        return []
    return [layer for layer, maps in found.items() if pattern_of(maps)]


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
    changed = batch.scorer(variant).logits_of(batch.images)
    return change_between(batch.loaded.model, batch.images, logits, changed, targets)


def change_between(model: nn.Module, images: Tensor, logits: Tensor, changed: Tensor, targets: Tensor) -> Change:
    """The change from a model's logits (B, K) to others, for the explained classes (B,)."""
    shares = (probabilities_of(model, images, one) for one in (logits, changed))
    before, after = (one.gather(1, targets[:, None]) for one in shares)
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
        for kind, more in one.items():
            _add(found, kind, more)
    return found
