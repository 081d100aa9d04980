"""DeepLIFT: multipliers instead of gradients, from one pass over the images and one over their references.

A rule passes the multiplier m_y at an operation's output on to its inputs, so that the sum of m_x (x - x') over
the inputs is m_y (y - y'): what a difference of logits is due to is then kept, at every layer. Sums,
convolutions and averages do so by their gradient. For everything else a rule here holds the operation at the image
beside the same operation at the reference, and whatever is made of these operations (rules/compositions.py) is
complete: normalization, attention, gates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Rule, Run
from .operations import AFFINE, ELEMENTWISE, PRODUCTS, Operation
from .pool import MAX_POOLS

# Below this difference of inputs the slope of the chord is replaced by the derivative at the midpoint
# (RectGrad's code base: 1e-5; DeepLIFT's: 1e-7).
NEAR = 1e-5

Values = tuple[Tensor, ...]


@dataclass(frozen=True)
class DifferenceRule(Rule):
    """A rule on what an operation takes and gives at the image and at the reference."""

    replaces_backward: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    of_parts: ClassVar[bool] = True
    required: ClassVar[bool] = False  # without a non-linearity the multipliers are the gradient

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation; its backward pass is ``propagate``."""
        # The operation stays with the graph; tensors that it
        # held beside autograd's own would keep the graph alive.
        others, operation.others = operation.others, ()
        if not (others and operation.inplace):
            result: Tensor = _Compared.apply(self, operation, x, *others)
            return result
        # Autograd has no way to say that of several inputs the first was overwritten
        # and is also needed: so the product is made apart and copied in.
        operation.inplace = False
        product: Tensor = _Compared.apply(self, operation, x.clone(), *others)
        return x.copy_(product)

    @abstractmethod
    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The multipliers at the inputs; ``here`` and ``there`` are inputs and output at image and reference."""


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: DifferenceRule, operation: Operation, *inputs: Tensor) -> Tensor:
        copied = operation.inplace or operation.copies
        kept = [x.clone() if copied else x.detach() for x in inputs]
        if operation.inplace:
            y = operation.original(inputs[0])
            ctx.mark_dirty(inputs[0])
        else:
            y = operation.run(*inputs)
        ctx.save_for_backward(*kept, y.clone() if operation.copies else y)
        ctx.rule = rule, operation
        return y

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor | None, ...]:
        rule, operation = ctx.rule
        assert operation.reference is not None
        return None, None, *rule.propagate(operation, ctx.saved_tensors, operation.reference.read(), multiplier)


@dataclass(frozen=True)
class RescaleElementwise(DifferenceRule):
    """DeepLIFT's rescale rule: m_x = m_y (f(x) - f(x')) / (x - x') at every elementwise non-linearity.

    Where x and x' nearly agree the slope is the derivative halfway (Shrikumar et al. 2017, Sec. 3.5.1).
    """

    operations: ClassVar[frozenset[str]] = ELEMENTWISE

    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Multiply by the slope of the chord between image and reference."""
        (x, y), (x0, y0) = here, there
        exact = _EXACT.get(operation.name)
        slope = _chord(operation, x, y, x0, y0) if exact is None else exact(x, y, x0, y0)
        return (slope.mul_(multiplier),)


def _chord(operation: Operation, x: Tensor, y: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    """(f(x) - f(x')) / (x - x'), where the difference is not too small to divide by.

    A large layer's time is that of its passes over memory, so every step works in place.
    """
    difference = x - x0
    slope = torch.sub(y, y0).div_(difference)
    # Near 0 the logarithm's slope changes within NEAR itself, so there only relative differences are small.
    scale = x.abs().clamp_max_(1) if operation.name in _STEEP else 1
    near = difference.abs_() < NEAR * scale
    # With a scale of 0 no difference is less than NEAR, and 0 / 0 has to be replaced all the same.
    near |= difference == 0
    if near.any():
        slope[near] = _derivative(operation, x, x0, near)
    return slope


def _derivative(operation: Operation, x: Tensor, x0: Tensor, where: Tensor) -> Tensor:
    """The elementwise derivative halfway between image and reference, at the chosen places."""
    if operation.name == "prelu":  # its slope depends on the channel
        return _slope(operation, (x + x0) / 2)[where]
    return _slope(operation, (x[where] + x0[where]) / 2)


def _slope(operation: Operation, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.requires_grad_()
        return torch.autograd.grad(operation.run(leaf).sum(), leaf)[0]


# These functions bend so sharply near 0, or jump, that only differences as small as rounding count as near.
_STEEP = frozenset({"log", "log2", "log10", "pow", "logit", "hardshrink", "threshold", "sign", "digamma", "entr"})


def _exponential_chord(x: Tensor, y: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    return logarithmic_mean(y, y0, x - x0)


def _root_chord(x: Tensor, y: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
    total = y + y0
    return total.masked_fill(total == 0, torch.inf).reciprocal_()


# The slope of the chord without a difference in it, so that nothing cancels.
_EXACT: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "square": lambda x, y, x0, y0: x + x0,
    "sqrt": _root_chord,
    "reciprocal": lambda x, y, x0, y0: -y0 / x,
    "rsqrt": lambda x, y, x0, y0: -(y * y0).square() / (y + y0),
    "exp": _exponential_chord,
}


def logarithmic_mean(y: Tensor, y0: Tensor, difference: Tensor) -> Tensor:
    """(y - y') / d, where d is the difference of their logarithms; y if they agree."""
    # y' = y exp(-d) gives (y - y') / d = max(y, y') (1 - exp(-|d|)) / |d|, in which nothing cancels or overflows.
    size = difference.abs()
    shrunk = torch.expm1(-size).div_(-size).masked_fill_(size == 0, 1)
    return torch.maximum(y, y0) * shrunk


@dataclass(frozen=True)
class RescaleProduct(DifferenceRule):
    """A product of activations, as in gates and attention: m_a = m_y mean(b, b') and m_b = m_y mean(a, a').

    Since delta(a b) = mean(b, b') delta(a) + mean(a, a') delta(b), it is complete where a plain gradient would not
    be, and symmetric. At ``einsum`` of more factors it is the mean of the gradient on the straight line from
    reference to image (Sundararajan et al. 2017, of this one operation), by the fewest nodes that give it exactly.
    """

    operations: ClassVar[frozenset[str]] = PRODUCTS | AFFINE

    def concerns(self, operation: Operation) -> bool:
        """Only products of two activations, such as a convolution by weights of the image's own."""
        return sum(operation.varies) > 1

    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Propagate to each factor the mean of the product of the others."""
        factors = list(zip(here[:-1], there[:-1], strict=True))
        # The derivative by one of n factors is of degree n - 1
        # along the line, for which ceil(n / 2) nodes are exact.
        nodes, weights = np.polynomial.legendre.leggauss((len(factors) + 1) // 2)
        found = []
        for node, weight in zip(nodes, weights, strict=True):
            with torch.enable_grad():
                between = [torch.lerp(x0, x, (1 + node) / 2).requires_grad_() for x, x0 in factors]
                y = operation.run(*between)
            found.append(torch.autograd.grad(y, between, multiplier * (weight / 2)))
        return tuple(torch.stack(parts).sum(0) for parts in zip(*found, strict=True))


@dataclass(frozen=True)
class RescaleSoftmax(DifferenceRule):
    """Softmax by the logarithmic mean l_i of y_i and y'_i: m_i = l_i (m_i - sum_j l_j m_j / sum_j l_j).

    Since log y_i = x_i - z for the normalizer's logarithm z, y_i - y'_i = l_i (x_i - x'_i - (z - z')) by the
    rescale rule for the exponential; and since the y sum to 1, z - z' = sum_j l_j (x_j - x'_j) / sum_j l_j. It is
    the gradient of the softmax with l for y, and tends to it. The logarithm of a softmax propagates
    m_i - l_i sum_j m_j / sum_j l_j.
    """

    operations: ClassVar[frozenset[str]] = frozenset({"softmax", "log_softmax"})

    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Share by logarithmic means."""
        dim, is_log = operation.settings["dim"], operation.name == "log_softmax"
        (x, y), (x0, y0) = here, there
        # It is the difference of log y_i, by the inputs: log(y) of a probability that underflows would be -inf.
        logs = y - y0 if is_log else (x - x.logsumexp(dim, True)) - (x0 - x0.logsumexp(dim, True))
        mean = logarithmic_mean(y.exp() if is_log else y, y0.exp() if is_log else y0, logs).nan_to_num(0, 0, 0)
        mean = mean.to(multiplier.dtype)
        share = mean / mean.sum(dim, keepdim=True)
        if is_log:
            return ((multiplier - share * multiplier.sum(dim, keepdim=True)).to(x.dtype),)
        return ((mean * (multiplier - (share * multiplier).sum(dim, keepdim=True))).to(x.dtype),)


@dataclass(frozen=True)
class RescaleMaxPool(DifferenceRule):
    """DeepLIFT's rescale rule at maxima: each window's difference of maxima, carried by an arg-max.

    With y, y' the maxima of a window: max(y, y') - y' falls on the image's arg-max, y - max(y, y') on the
    reference's; each input's share is divided by its own difference. Overlapping windows add. Maxima along
    dimensions (``amax``, ``max``, ``min``) are windows, too.
    """

    operations: ClassVar[frozenset[str]] = MAX_POOLS | {
        *("amax", "max_pool1d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool3d")
    }

    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Scatter m times the difference of maxima to the arg-maxima, over the inputs' difference."""
        (x, y), (x0, y0) = here, there
        larger = torch.maximum(y, y0)
        share = _scatter(operation, x, multiplier * (larger - y0))
        share += _scatter(operation, x0, multiplier * (y - larger))
        difference = x - x0
        # A share falls only where the inputs differ at least as much as the maxima do.
        return (share.div_(difference.masked_fill_(difference == 0, 1)),)


@dataclass(frozen=True)
class RescaleChoice(DifferenceRule):
    """A choice y = where(c, a, b) whose condition may be another at the reference.

    Where it is, both values share the difference: m_a = m_y (y - y') sign(a - a') / (|a - a'| + |b - b'|), and b
    alike. Of functions of one tensor, as in a leaky ReLU by hand, that is the slope of the chord.
    """

    operations: ClassVar[frozenset[str]] = frozenset({"where"})

    def propagate(
        self, operation: Operation, here: Values, there: Values, multiplier: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Pass the multiplier to the value chosen, or share it."""
        (a, b, c, y), (a0, b0, c0, y0) = here, there
        changes = [one - other for one, other in ((a, a0), (b, b0))]
        total = changes[0].abs() + changes[1].abs()
        shared = multiplier * (y - y0) / total.masked_fill(total == 0, 1)
        same = c == c0
        found = [
            torch.where(same, torch.where(chosen, multiplier, 0), shared * change.sign()).sum_to_size(change.shape)
            for chosen, change in zip((c, ~c), changes, strict=True)
        ]
        return (*found, None)


def _scatter(operation: Operation, x: Tensor, values: Tensor) -> Tensor:
    """Add each window's value at the window's arg-max of ``x``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        # The native gradient of a pooling is this very scatter, for any window, stride, padding and dilation.
        (placed,) = torch.autograd.grad(operation.run(leaf), leaf, values)
    return placed
