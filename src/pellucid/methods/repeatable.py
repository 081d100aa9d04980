"""Refuses models that cannot be explained image by image: random, changed by running, or mixing a batch's images.

It is tried, not guessed from the types of modules: a dropout that is always active, an LSTM's dropout, a batch
normalization without running statistics or a function of the model's own all show in what the model does.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputWarning, InvalidModel, InvalidTarget
from ..layers import INPUT, captured, module_outputs, remembered
from ..layouts import take_over_layouts
from ..outputs import Answering, Difference, first_logits, logits_in
from ..passes import is_out_of_memory
from ..rules.base import Rule, Rules
from ..rules.norm import FrozenBatchNorm
from ..sampling import noise_like
from .checks import images_look_wrong, outputs_look_wrong, same_logits
from .differences import MISSED_BY_GRADIENTS
from .places import ASTRAY

_UNEXPLAINABLE = "unexplainable"  # what is remembered of layers
_SAME, _SCORABLE = "same under rules", "scorable"  # and of the model
_DISTURBED = (
    "the model writes into the output of layer {!r} by another name, as into a tensor that it is a view of, so "
    "that it cannot be captured without changing what the model answers; name another layer"
)
_MIXED = (
    "layer {!r} gives an image another row beside other images: the model reorders or mixes its images there, so "
    "which row is whose is unknown; name another layer, or explain with max_batch=1"
)
# What a copy with other weights takes over, and whether it is remembered of weights.
_TAKEN_OVER = ((_SAME, False), (_SCORABLE, True), (MISSED_BY_GRADIENTS, True), (ASTRAY, False))
TRIES = 100  # of a model that draws random numbers, until two differ
_BESIDE = 4  # images of a batch that is tried: two would hide rows that move by two places

# What was told of a model's images and outputs, by kind.
_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def require_repeatable(
    model: nn.Module, images: Tensor, answering: nn.Module, max_batch: int, preprocess: Any = None
) -> None:
    """Raise ``InvalidModel`` unless an image's logits are the same again, with gradients and beside other images.

    Five passes over the first image, and one over up to four together and each of the others alone; three in all
    if a ``max_batch`` of 1 has images run alone. Once for a model as it is
    (``remembered``), for each function that is asked of it and for the images' shape. Logits are the same if they
    differ by at most sqrt(eps) of the largest, eps being their precision. ``answering`` is the model as the
    classifier whose logits are explained; ``InvalidTarget`` if its function alone is to blame. What else looks
    wrong, of these or of later images, is warned of, each kind once for a model.
    """
    # This is asked of each call, since images differ; all that follows is of the model, and tried once.
    _tell(model, images_look_wrong(images, preprocess))
    trial = (images.shape[1:], images.dtype, images.device, min(max_batch, _BESIDE))
    function = answering.function if isinstance(answering, Answering) else None
    if isinstance(function, Difference):  # of two logits of an image, so neither random nor mixing
        answering, function = model, None
    asked = model if function is None else function
    if _is_among(asked, _tried(model).get(trial, ())):
        return
    with torch.no_grad():
        first = _tried_on(answering, images, max_batch)
    _tell(model, outputs_look_wrong(images, first, model if function is None else None))
    with suppress(TypeError):  # a function that cannot be referred to weakly is tried each time
        _tried(model).setdefault(trial, WeakSet()).add(asked)


def require_the_same(model: nn.Module, answering: nn.Module, rules: Sequence[Rule], image: Tensor) -> None:
    """Raise ``InvalidModel`` where a model gives an image other logits under rules of the backward pass alone.

    It then differentiates within its own forward pass, where they act, too, so that another function would be
    explained. Of a single image rules of whole images also see where its units do not come first: of as many
    images as tokens they would not. Two passes, once for a model and its rules.
    """
    backward = tuple(rule for rule in rules if rule.replaces_backward or isinstance(rule, FrozenBatchNorm))
    known, trial = remembered(model, _SAME), (backward, type(answering), image.shape[1:], image.dtype)
    if trial in known:
        return
    expected = first_logits(answering, image)
    with Rules(backward, model=model, count=1):
        ruled = _differentiated(answering, image, expected, any(rule.of_images for rule in backward))
    if not same_logits(ruled, expected):
        names = [str(rule) for rule in backward if not isinstance(rule, FrozenBatchNorm)]
        raise InvalidModel(
            f"under {', '.join(names) or 'frozen batch norms'} the model gives an image other logits than by "
            "itself, as one that differentiates within its own forward pass, so its map would be of another "
            "function; choose a method without rules, or give what it computes so as a constant"
        )
    known[trial] = True


def require_scorable(model: nn.Module, image: Tensor, max_batch: int) -> None:
    """Raise ``InvalidModel`` unless an image's logits are the same again and beside other images.

    That is what scores need: as ``require_repeatable``, but for gradients, and asked once for a model.
    """
    trial = (image.shape[1:], image.dtype, image.device, min(max_batch, _BESIDE))
    known = remembered(model, _SCORABLE, with_weights=True)
    if trial not in known and not _is_among(model, _tried(model).get(trial, ())):
        with torch.no_grad():
            _tried_on(model, image, max_batch, are_maps=False)
        known[trial] = True


def warn_of_scored(model: nn.Module, images: Tensor) -> None:
    """Warn of what looks wrong of images and outputs that are scored, each kind once for a model."""
    with torch.no_grad():
        _tell(
            model, images_look_wrong(images) | outputs_look_wrong(images, first_logits(model, images[:1]), model)
        )


def _tell(model: nn.Module, found: Mapping[str, str]) -> None:
    """Warn of what was found of a kind that was not told of this model before."""
    told = _TOLD.setdefault(model, set())
    for kind, sentence in found.items():
        if kind not in told:
            told.add(kind)
            warnings.warn(InputWarning(sentence), stacklevel=7)


def _tried_on(model: nn.Module, images: Tensor, max_batch: int, are_maps: bool = True) -> Tensor:
    """The logits of the first image, found to be the same on a second run and beside others, where any are.

    Where ``are_maps`` also with gradients.
    """
    image = images[:1]
    changed, first = _changed_by_a_run(model, image)
    if changed:
        raise InvalidModel(
            f"the model's {changed!r} changes when the model runs, so its maps would depend on what ran "
            "before; call model.eval(), or switch off what keeps statistics"
        )
    if len(first) != 1:
        raise InvalidModel(
            f"of one image the model gives logits {tuple(first.shape)}, no row: keep the batch's dimension, as by "
            "flatten(1) instead of squeeze()"
        )
    if _is_random(model, image, first):
        where = _where(model, image)
        if not where and isinstance(model, Answering):
            raise InvalidTarget(
                "the target function or the model is random: it gives an image other values each time; make it "
                "depend on what the model returns alone"
            )
        raise InvalidModel(
            f"the model is random: it gives an image other logits each time{where}; call model.eval(), or replace "
            "what stays random in it"
        )
    if are_maps and not same_logits(first, _differentiated(model, image, first)):
        raise InvalidModel(
            "the model gives an image other logits where gradients are asked for, so its map would be of another "
            "function; let it compute the same, whatever torch.is_grad_enabled() or requires_grad says"
        )
    beside = _beside(model, images, first, max_batch)
    if beside is not None:
        where = _where(model, *beside)
        if not where and isinstance(model, Answering):
            raise InvalidTarget(
                "what the target function gives for an image depends on the images beside it, so would its map; "
                "give a function that treats images one by one"
            )
        raise InvalidModel(
            f"the logits of an image depend on the images beside it{where}, so would its map; give normalizations "
            "running statistics, or a model that treats images one by one, or explain with max_batch=1"
        )
    return first


def _tried(model: nn.Module) -> dict[Any, WeakSet[Any]]:
    """What was found repeatable: by what it was tried on, the model itself and functions asked of it."""
    return remembered(model, "repeatable", with_weights=True)


def _is_among(one: Any, others: Collection[Any]) -> bool:
    try:
        return one in others
    except TypeError:  # no hash
        return False


def _differentiated(model: nn.Module, image: Tensor, expected: Tensor, back: bool = False) -> Tensor:
    """An image's logits where gradients are asked for; those expected where torch alone has no derivative.

    Where asked, gradients go ``back``, too.
    """
    try:
        with torch.enable_grad():
            leaf = image.clone().requires_grad_()
            logits = _logits(model, leaf)
            if back:
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
            return logits.detach()
    except (InvalidModel, RuntimeError) as error:
        if is_out_of_memory(error) or (back and isinstance(error, InvalidModel)):
            raise
        return expected


def take_over(copy: nn.Module, model: nn.Module) -> None:
    """Take what was found by trying a model for true of its copy with other weights: nothing else is another."""
    for trial, asked in _tried(model).items():
        _tried(copy)[trial] = WeakSet(copy if one is model else one for one in asked)
    _TOLD[copy] = set(_TOLD.get(model, ()))
    for what, with_weights in _TAKEN_OVER:
        remembered(copy, what, with_weights).update(remembered(model, what, with_weights))
    remembered(copy, _UNEXPLAINABLE).update(remembered(model, _UNEXPLAINABLE))
    take_over_layouts(copy, model)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return logits_in(model(images.clone()))


def _changed_by_a_run(model: nn.Module, image: Tensor) -> tuple[str, Tensor]:
    """The first tensor of the model that a run replaces or overwrites, empty if none, and the run's logits."""

    def versions() -> dict[str, tuple[int, int]]:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        # An in-place change raises a tensor's version, a replacement
        # its identity: neither needs a copy of the weights.
        return {name: (id(one), 0 if one.is_inference() else one._version) for name, one in tensors.items()}

    before, logits = versions(), first_logits(model, image)
    return next((name for name, version in versions().items() if before.get(name) != version), ""), logits


def _is_random(model: nn.Module, image: Tensor, first: Tensor) -> bool:
    """Whether runs differ: one, or, if random numbers were drawn for it, as many as show a rare difference."""
    before = _random_state(image.device)
    if not same_logits(first, _logits(model, image)):
        return True
    # Most models draw nothing, which the generator's state tells, so that few are run as often.
    drawn = before != _random_state(image.device)
    return drawn and any(not same_logits(first, _logits(model, image)) for _ in range(TRIES))


def _random_state(device: torch.device) -> tuple[Any, ...]:
    """The state of all that a model may draw from without a generator of its own."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - a model may draw from it
    numbers = legacy["state"]
    return (
        *(state.numpy().tobytes() for state in states),
        random.getstate(),
        numbers["key"].tobytes(),
        numbers["pos"],
    )


def _beside(model: nn.Module, images: Tensor, first: Tensor, max_batch: int) -> tuple[Tensor, int] | None:
    """A batch, and the place in it at which an image has other logits than alone; None where none has.

    ``first`` are the logits of the first image alone. Beside noise it need not wait for another, or lack a place
    that another took, so that some of the images are tried together, too.
    """
    known, some = first, images[: min(max_batch, _BESIDE)]
    for shift, batch in enumerate([*_batches(images[:1], max_batch), *([some] if len(some) > 1 else [])]):
        try:
            logits = _logits(model, batch)
            if batch is some:
                known, shift = torch.cat([first, *(_logits(model, one) for one in some[1:].split(1))]), 0
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return None  # a model for single images
        if len(logits) != len(batch):
            return None
        known, found = _moved(known, logits, shift)
        if found is not None:
            return batch, found
    return None


def _batches(image: Tensor, max_batch: int) -> Iterator[Tensor]:
    """An image (1, C, H, W) first in a batch of others, and all of them a place further; none if they run alone.

    A model may sort its images, move them, or look at the first or the last of them alone. Only one that keeps
    each image's row at its place, or turns them all around, gives each the same in both batches, and the first
    image, known alone, tells these two apart. The others are neither the image nor one another, whatever it shows.
    """
    count = min(max_batch, _BESIDE)
    if count == 1:
        return
    keys = range(1, count)
    noise = noise_like(image.expand(len(keys), -1, -1, -1), keys).view(-1, *image.shape[1:])
    # The others are noise as large as the image, less its mirror: they differ from it even where it has one color.
    batch = torch.cat([image, noise * float(image.abs().amax() or 1) - image.flip(-1)])
    yield batch
    yield batch.roll(1, 0)


def _moved(known: Tensor, rows: Tensor, shift: int) -> tuple[Tensor, int | None]:
    """The rows of all images, of which some are ``known``, and the place of one that has another row here."""
    rows = rows.roll(-shift, 0)
    same = (same_logits(known[place : place + 1], rows[place : place + 1]) for place in range(len(known)))
    moved = next((place for place, is_same in enumerate(same) if not is_same), None)
    return torch.cat([known, rows[len(known) :]]), None if moved is None else (moved + shift) % len(rows)


def _where(model: nn.Module, images: Tensor, place: int = 0) -> str:
    """The first module whose output for one of the images differs from that for it alone, in words."""
    with module_outputs(model) as alone:
        model(images[place : place + 1].clone())
    for _ in range(TRIES):
        with module_outputs(model) as again:
            model(images.clone())
        # A module may run in one pass and not in the other, hence
        # no strict pairing; the first that differs is enough.
        for (name, one), (_, other) in zip(alone, again, strict=False):
            if not same_logits(one, other[place * len(one) : (place + 1) * len(one)]):
                return f", first at {name!r} ({type(model.get_submodule(name)).__name__})" if name else ""
    return ""


def unexplainable(
    model: nn.Module, answering: nn.Module, layers: Collection[str], image: Tensor, max_batch: int
) -> dict[str, str]:
    """Why layers cannot be explained, of those that cannot, tried with an image (1, C, H, W), once for each layer.

    A layer's capture may change what the model answers: what writes into its output afterwards by another name, as
    into a tensor that it is a view of, misses the copy with which the model goes on. And a layer's rows may be in
    another order than the images, or mix them, which later parts of the model undo; not if images run alone.
    """
    known: dict[Any, str] = remembered(model, _UNEXPLAINABLE)
    trial = (image.shape[1:], min(max_batch, _BESIDE))
    new = [layer for layer in layers if layer != INPUT and (layer, trial) not in known]
    if new:
        with torch.no_grad():
            alone, changed = _disturbed(model, answering, new, image)
            mixed = _mixed(model, answering, alone, image, max_batch)
        whys = dict.fromkeys(mixed, _MIXED) | dict.fromkeys(changed, _DISTURBED)
        known.update({(layer, trial): whys.get(layer, "").format(layer) for layer in new})
    return {layer: known[layer, trial] for layer in layers if known.get((layer, trial))}


def _disturbed(
    model: nn.Module, answering: nn.Module, layers: Sequence[str], image: Tensor
) -> tuple[dict[str, Tensor], set[str]]:
    """What layers give for an image, but for those whose capture changes what the model answers; and these."""
    expected = logits_in(answering(image.clone()))

    def captures(chosen: Sequence[str]) -> dict[str, Tensor] | None:
        with captured(model, chosen, strict=False) as outputs:
            logits = logits_in(answering(image.clone()))
        return outputs if same_logits(logits, expected) else None

    # All are tried at once first, since hardly any model is
    # disturbed; one by one only to tell which layer does it.
    found = captures(layers)
    if found is not None:
        return found, set()
    each = {layer: captures([layer]) for layer in layers}
    kept = {layer: one for outputs in each.values() for layer, one in (outputs or {}).items()}
    return kept, {layer for layer, outputs in each.items() if outputs is None}


def _mixed(
    model: nn.Module, answering: nn.Module, alone: Mapping[str, Tensor], image: Tensor, max_batch: int
) -> set[str]:
    """The layers whose row for an image is another beside other images; ``alone`` are those of the first."""
    mixed, known = set(), dict(alone)
    for shift, images in enumerate(_batches(image, max_batch)):
        try:
            with captured(model, list(alone), strict=False) as outputs:
                answering(images.clone())
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return set()  # a model for single images
        for layer, rows in outputs.items():
            # What does not give a row for each image is refused elsewhere.
            if alone[layer].shape[:1] == (1,) and rows.shape[:1] == images.shape[:1]:
                known[layer], found = _moved(known[layer], rows, shift)
                if found is not None:
                    mixed.add(layer)
    return mixed
