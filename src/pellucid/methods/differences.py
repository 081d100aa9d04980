"""Compares a model's gradient with what its answer changes by: what hides from gradients shows there, however.

Part of a model may be detached, run without gradients where no operation is seen (in a scripted function, another
thread, under ``torch.vmap``), or pass on another gradient than its own. Each leaves a map that looks like others.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GradientWarning, InvalidModel, percent
from ..layers import remembered
from ..outputs import Answering, Difference, logits_in
from ..passes import exact, is_out_of_memory
from ..rules.base import Rules
from ..rules.norm import FrozenBatchNorm

MISSED_BY_GRADIENTS = "missed by gradients"  # what is remembered of a model
MISSED = 0.1  # of the change of the answer, from which on it is warned of
# Of the answer's size, by which the first step changes it. Longer ones meet kinks of trained networks, shorter
# ones drown in roundings of single precision: of ResNets with their weights this one is off least, by 2 to 6 %.
_CHANGE = 2**-16
_NEAR, _FAR = 0.05, 0.02  # of the images' spread: how far from the image it is tried, and the longest step
_FLAT = 0.1  # of the largest value: the least spread that an image is taken to have
_LENGTHS = {torch.float64: (1, 2**-6, 2**-12, 2**2)}  # times the first, one tried after the other
_AGREEING = 3  # lengths
_SURE = 4.0  # times further the gradient is off than two lengths of steps are apart
_BLOCKS, _EACH = 4, 2  # a side, of the coarse directions; and how many directions there are of each kind


def warn_of_missed(model: nn.Module, answering: nn.Module, image: Tensor, max_batch: int) -> None:
    """Warn where gradients miss part of what an answer changes by (``missed_by_gradients``).

    It is tried once for a model, and for each function that is asked of it; ``answering`` is the model as the
    classifier whose logits are explained.
    """
    function = answering.function if isinstance(answering, Answering) else None
    if isinstance(function, Difference):  # of two logits, which the model's own trial looks at
        answering, function = model, None
    known: dict[Any, float] = remembered(model, MISSED_BY_GRADIENTS, with_weights=True)
    try:
        trial = image.shape[1:], image.dtype, image.device, None if function is None else weakref.ref(function)
        share = known.get(trial)
    except TypeError:  # a function that cannot be referred to is tried each time
        trial, share = None, None
    if share is None:
        share = missed_by_gradients(answering, image, max_batch)
    if trial is not None:
        known[trial] = share
    if share:
        message = (
            f"steps away from the image change the model's answer otherwise than its gradient tells, by "
            f"{percent(share)}: part of the model is detached, runs without gradients, or passes on others than "
            "its own, and maps of what comes before that part miss it; let all of it run with PyTorch's own "
            "gradients, or read them as the rest's"
        )
        warnings.warn(GradientWarning(message), stacklevel=5)


def missed_by_gradients(model: nn.Module, image: Tensor, max_batch: int) -> float:
    """The share of an answer's change that the gradient does not tell; 0 where it tells all, or rounding hides it.

    ||c - d . grad s(x)|| / ||c||, c = (s(x + h d) - s(x - h d)) / 2h, over directions d. Here s is a random sum of
    logits and x a point near the image, since at the image itself activations may have a kink, as where it is
    black. Directions of single pixels do not show what depends on means alone, so that others are coarse, and the
    larger share of the two kinds counts. One backward pass and eight rows; more where these differ. What is off
    must be so for three lengths of steps that agree far better.
    """
    if image.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(image.device.type):
        return 0.0  # rounding is as large as any change
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(image)

    spread = max(float(image.std(correction=0)), _FLAT * float(image.abs().amax())) or 1.0
    coarse = F.interpolate(drawn(_EACH, image.shape[1], _BLOCKS, _BLOCKS), size=image.shape[2:])
    directions = torch.cat([drawn(_EACH, *image.shape[1:]), coarse])
    near = image + _NEAR * spread * drawn(*image.shape)
    try:
        with torch.enable_grad(), Rules((FrozenBatchNorm(),), model=model, count=1):
            leaf = near.clone().requires_grad_()
            logits = _logits(model, leaf)
            weights = drawn(*logits.shape)
            (gradient,) = torch.autograd.grad(logits, leaf, weights, allow_unused=True, materialize_grads=True)
        if not bool(gradient.any()):
            return 0.0  # what hides all of the model is told elsewhere, and layers above it may be explained
        told = _by_kind((exact(gradient) * exact(directions)).flatten(1).sum(1))
        # Of a sum of random signs the size is that of its terms, by their root mean square.
        size = float((exact(logits) * exact(weights)).detach().square().sum().sqrt())
        longest = _CHANGE * size / told.norm(dim=1).clamp_min(torch.finfo(told.dtype).tiny) * math.sqrt(_EACH)
        longest = longest.clamp_max(_FAR * spread)

        def changes(step: float) -> Tensor:
            length = (step * longest).repeat_interleave(_EACH).to(image)
            moved = length[:, None, None, None] * directions
            rows = torch.cat([near + moved, near - moved]).split(max_batch)
            with torch.no_grad():
                scores = torch.cat([exact(_logits(model, part)) for part in rows]) @ exact(weights)[0]
            ahead, behind = scores.chunk(2)
            return _by_kind((ahead - behind) / (2 * exact(length)))

        return _share(map(changes, _LENGTHS.get(image.dtype, (1, 2**2, 2**-2, 2**4))), told)
    except (InvalidModel, RuntimeError) as error:  # what has no gradient at all is refused where it is asked for
        if is_out_of_memory(error):
            raise
        return 0.0


def _logits(model: nn.Module, rows: Tensor) -> Tensor:
    """Logits of rows, one by one of a model for single images."""
    logits = logits_in(model(rows.clone()))
    alone = len(logits) != len(rows)
    return torch.cat([logits_in(model(row.clone())) for row in rows.split(1)]) if alone else logits


def _by_kind(values: Tensor) -> Tensor:
    """Values of all directions as (kinds, directions of each)."""
    return values.view(-1, _EACH)


def _share(changes: Iterator[Tensor], told: Tensor) -> float:
    """The largest share, over kinds of directions, that is surely missing in what was ``told`` of changes."""
    known: list[Tensor] = []
    for found in changes:
        if not bool((_apart(found, told) > MISSED).any()):
            return 0.0
        known.append(found)
        for some in combinations(known, _AGREEING):
            # Kinks within the steps bring changes nearer to the gradient the shorter these are, rounding apart.
            spread = torch.stack([_apart(one, other) for one, other in combinations(some, 2)]).amax(0)
            off = torch.stack([_apart(one, told) for one in some]).amin(0)
            sure = off > (_SURE * spread).clamp_min(MISSED)
            if bool(sure.any()):
                return float(off[sure].max())
    return 0.0


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far two changes are apart, as a share of the larger, for each kind of direction."""
    largest = torch.maximum(one.norm(dim=1), other.norm(dim=1)).clamp_min(torch.finfo(one.dtype).tiny)
    apart: Tensor = (one - other).norm(dim=1) / largest
    return apart
