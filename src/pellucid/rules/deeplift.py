"""DeepLIFT: multipliers instead of gradients, from images and references run as one batch.

The first half of every batch holds the images, the second half the references, row by row. Multipliers belong
to the images; the references' half receives no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import BackwardRule, Rule, Run
from .operations import ELEMENTWISE, Operation
from .pool import MAX_POOLS

# Below this difference of inputs the slope of the chord is replaced by the derivative at the midpoint
# (RectGrad's code base: 1e-5; DeepLIFT's: 1e-7).
NEAR = 1e-5


Halves = tuple[Tensor, Tensor]


def _halves(x: Tensor) -> Halves:
    images, references = x.chunk(2)
    return images, references


def _images_only(multiplied: Tensor) -> Tensor:
    return torch.cat([multiplied, torch.zeros_like(multiplied)])


@dataclass(frozen=True)
class RescaleElementwise(BackwardRule):
    """DeepLIFT's rescale rule: m_in = m (f(x) - f(x')) / (x - x') at every elementwise non-linearity."""

    needs_reference: ClassVar[bool] = True
    required: ClassVar[bool] = False  # without a non-linearity the multipliers are the gradient
    operations: ClassVar[frozenset[str]] = ELEMENTWISE

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Multiply by the slope of the chord between image and reference."""
        multiplied = torch.zeros_like(x)
        slope, multiplier = _halves(multiplied)[0], _halves(gradient)[0]
        _write_chords(slope, operation, _halves(x), _halves(y))
        slope.mul_(multiplier)
        return multiplied


def _write_chords(slope: Tensor, operation: Operation, x: Halves, y: Halves) -> None:
    """Write (f(x) - f(x')) / (x - x') into ``slope``; where x and x' nearly agree, the derivative between them.

    A large layer's time is that of its passes over memory, so every step works in place.
    """
    (image, reference), (value, reference_value) = x, y
    difference = image - reference
    torch.sub(value, reference_value, out=slope).div_(difference)
    near = difference.abs_() < NEAR
    if near.any():
        slope[near] = _derivative(operation, image, reference, near)


def _derivative(operation: Operation, image: Tensor, reference: Tensor, where: Tensor) -> Tensor:
    """The elementwise derivative halfway between image and reference, at the chosen places."""
    if operation.name == "prelu":  # its slope depends on the channel
        return _slope(operation, (image + reference) / 2)[where]
    return _slope(operation, (image[where] + reference[where]) / 2)


def _slope(operation: Operation, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.requires_grad_()
        return torch.autograd.grad(operation.run(leaf).sum(), leaf)[0]


@dataclass(frozen=True)
class ImagesBackward(Rule):
    """Run a convolution of images and references so that only the images' half is propagated back.

    The references' half of the gradient is zero: the same multipliers, for half of the backward pass.
    """

    required: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    operations: ClassVar[frozenset[str]] = frozenset({"conv2d"})

    @property
    def alters_gradient(self) -> bool:
        """The gradient is the same."""
        return False

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the halves one by one, the references without a graph."""
        if not x.requires_grad or not len(x):
            return run(x)
        images, references = _halves(x)
        with torch.no_grad():
            there = run(references)
        return torch.cat([run(images), there])


@dataclass(frozen=True)
class RescaleMaxPool(BackwardRule):
    """DeepLIFT's rescale rule at max-pooling: each window's difference of maxima, carried by an arg-max.

    With y, y' the maxima of a window: max(y, y') - y' falls on the image's arg-max, y - max(y, y') on the
    reference's; each input's share is divided by its own difference. Overlapping windows add.
    """

    needs_reference: ClassVar[bool] = True
    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = MAX_POOLS

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Scatter m times the difference of maxima to the arg-maxima, over the inputs' difference."""
        (image, reference), (value, reference_value) = _halves(x), _halves(y)
        multiplier, larger = gradient.chunk(2)[0], torch.maximum(value, reference_value)
        share = _scatter(operation, image, multiplier * (larger - reference_value))
        share += _scatter(operation, reference, multiplier * (value - larger))
        difference = image - reference
        # A share falls only where the inputs differ at least as much as the maxima do.
        return _images_only(share.div_(difference.masked_fill_(difference == 0, 1)))


def _scatter(operation: Operation, x: Tensor, values: Tensor) -> Tensor:
    """Add each window's value at the window's arg-max of ``x``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (placed,) = torch.autograd.grad(operation.run(leaf), leaf, values)
    return placed


@dataclass(frozen=True)
class RescaleProduct(Rule):
    """A product of two activations, such as a gate: delta(a b) = mean(b, b') delta(a) + mean(a, a') delta(b).

    Exact and symmetric, so the attribution stays complete where a plain gradient would not.
    """

    replaces_backward: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = frozenset({"mul"})

    def concerns(self, operation: Operation) -> bool:
        """Only products of two activations: a parameter, a leaf of the graph, is a constant factor."""
        a, b = operation.input, operation.settings["other"]
        return a.grad_fn is not None and b.grad_fn is not None and a.dim() == b.dim() and len(a) == len(b)

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Multiply; propagate to each factor the mean of the other over image and reference."""
        other = operation.settings["other"]
        product: Tensor = _Product.apply(x, other)
        return x.copy_(product) if operation.inplace else product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(_mean_of_halves(a), _mean_of_halves(b))
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        multiplier = gradient.chunk(2)[0]
        return (
            _images_only((multiplier * b).sum_to_size(a.shape)),
            _images_only((multiplier * a).sum_to_size(b.shape)),
        )


def _mean_of_halves(x: Tensor) -> Tensor:
    images, references = _halves(x)
    return (images + references) / 2
