"""Layer-wise relevance propagation (LRP) as gradient rules.

The relevance of a unit is R = a g, its activation times the gradient g that arrives there under the rules: what
``Gradient(rules=..., multiply=True)`` reads out at every layer. A propagation rule that takes R_j at the outputs
of an affine operation to R_i = x_i sum_j W~_ij R_j / z~_j at its inputs is hence, as a gradient rule,
g_i = sum_j W~_ij R_j / z~_j with R_j = y_j g_j.

Between affine operations relevance has to pass activations unchanged: z g_z = f(z) g_a, so g_z = g_a f(z) / z.
The gradient of a ReLU or of a leaky ReLU is that by itself. For any other activation ``EpsilonLRP`` sees to it; it
also gives the affine operation below the activation its epsilon rule. Where no rule of this file acts, relevance
passes affine operations by the epsilon rule with epsilon = 0, the plain gradient: that is so of a batch
normalisation, which is an operation of its own here (zennit folds it into the convolution before it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidImage, InvalidParameter
from .base import BackwardRule
from .operations import ACTIVATIONS, AFFINE, Operation


def stabilized(z: Tensor, epsilon: float) -> Tensor:
    """z + epsilon sign(z), with sign(0) = 1: a divisor that is never 0.

    Every step works in the memory of the one before; steps in memory of their own take up to three times as long.
    """
    return (z >= 0).to(z).mul_(2 * epsilon).sub_(epsilon).add_(z)


def _require_positive(rule: object, name: str, value: float, zero: bool = False) -> None:
    if not (value > 0 or (zero and value == 0)):
        sign = "a number that is not negative" if zero else "a positive number"
        raise InvalidParameter(f"{type(rule).__name__}: {name}={value}; give {sign}")


@dataclass(frozen=True)
class EpsilonLRP(BackwardRule):
    """Epsilon-LRP: R_in = R f(z) / (z + epsilon sign(z)) at every activation with f(0) = 0; sign(0) = 1.

    Multiplied by a layer's activation, the gradient so modified is that layer's relevance under the
    epsilon rule (Ancona et al. 2018, Prop. 1); biases absorb their share. As in RectGrad's baselines the
    logit's own linear layer has no epsilon. Gates (sigmoid) and products propagate their ordinary gradient.
    """

    epsilon: float = 1e-4
    operations: ClassVar[frozenset[str]] = ACTIVATIONS

    def __post_init__(self) -> None:
        _require_positive(self, "epsilon", self.epsilon)

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Multiply the gradient by the slope of the chord from the origin, stabilised by epsilon."""
        return gradient * (y * stabilized(x, self.epsilon).reciprocal_())


@dataclass(frozen=True)
class GammaLRP(BackwardRule):
    """Gamma-LRP: R_i = sum_j (c_ij + gamma c_ij^s) / (z_j + gamma z_j^s) R_j at convolutions and linear layers.

    The contributions c_ij = x_i w_ij sum to z_j, with the bias. Those of z_j's own sign s, with sum z_j^s,
    are favored by ``gamma`` >= 0. For inputs that are not negative and z_j > 0, which is all that a ReLU passes
    on, it is the rule of Montavon et al. 2019, with w + gamma w^+ for w; for others its generalisation by Andeol
    et al. 2021. ``epsilon`` keeps the divisor from 0.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6
    operations: ClassVar[frozenset[str]] = AFFINE

    def __post_init__(self) -> None:
        _require_positive(self, "gamma", self.gamma, zero=True)
        _require_positive(self, "epsilon", self.epsilon)

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Share y g by the contributions, the favored ones enlarged."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            positive, negative = _signed_sums(operation, x)
            z = positive + negative
            z = z + self.gamma * torch.where(z > 0, positive, negative)
        return torch.autograd.grad(z, x, y * gradient / stabilized(z.detach(), self.epsilon))[0]


@dataclass(frozen=True)
class AlphaBetaLRP(BackwardRule):
    """Alpha-beta-LRP: R_i = sum_j (alpha c_ij^+ / z_j^+ - beta c_ij^- / z_j^-) R_j, with alpha - beta = 1.

    At convolutions and linear layers (Bach et al. 2015), with the positive and negative contributions
    c_ij = x_i w_ij and their sums z_j^+ and z_j^-, to which the bias belongs by its sign. ``beta`` >= 0;
    ``epsilon`` keeps the divisors from 0. A unit with contributions of one sign alone does not conserve relevance.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    operations: ClassVar[frozenset[str]] = AFFINE

    def __post_init__(self) -> None:
        _require_positive(self, "beta", self.beta, zero=True)
        _require_positive(self, "epsilon", self.epsilon)
        if not math.isclose(self.alpha - self.beta, 1):
            raise InvalidParameter(f"AlphaBetaLRP: alpha={self.alpha}, beta={self.beta}; give alpha = 1 + beta")

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Share y g by the positive and by the negative contributions."""
        relevance = y * gradient
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            positive, negative = sums = _signed_sums(operation, x)
        for_positive = self.alpha * relevance / stabilized(positive.detach(), self.epsilon)
        for_negative = -self.beta * relevance / stabilized(negative.detach(), self.epsilon)
        return torch.autograd.grad(sums, x, (for_positive, for_negative))[0]


def _signed_sums(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
    """z^+ and z^-: the sums of the positive and of the negative contributions x_i w_ij, with the bias by its sign.

    Their derivatives by x_i are the sums of the weights that contribute so.
    """
    weight, bias = operation.settings["weight"].detach(), operation.settings["bias"]
    above = torch.where(x >= 0, x, 0)  # so that an input of 0 counts as positive, as Montavon's do
    below = x - above

    def total(same: Tensor, opposite: Tensor, constant: Tensor | None) -> Tensor:
        z: Tensor = operation.run(above, weight=same, bias=constant)
        return z + operation.run(below, weight=opposite, bias=None)

    up, down = weight.clamp(min=0), weight.clamp(max=0)
    biases = (None, None) if bias is None else (bias.detach().clamp(min=0), bias.detach().clamp(max=0))
    return total(up, down, biases[0]), total(down, up, biases[1])


@dataclass(frozen=True)
class ZBoxLRP(BackwardRule):
    """Z-box-LRP (z^B) of pixels in [low, high]: R_i = sum_j b_ij / sum_k b_kj R_j.

    Here b_ij = x_i w_ij - low w_ij^+ - high w_ij^-. It acts at the model's first convolution or linear layer
    (Montavon et al. 2017). ``low`` <= 0 <= ``high`` are the least and the greatest value that a pixel may have
    after preprocessing: a number, or one for each channel. The gradient is R_i / x_i, so a pixel that is exactly 0
    cannot hold its relevance: ``InvalidImage`` is raised. ``epsilon`` keeps the divisor from 0.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    epsilon: float = 1e-6
    operations: ClassVar[frozenset[str]] = AFFINE

    def __post_init__(self) -> None:
        _require_positive(self, "epsilon", self.epsilon)
        lows, highs = (torch.tensor(bound) for bound in (self.low, self.high))
        if lows.dim() > 1 or highs.dim() > 1 or (lows > 0).any() or (highs < 0).any():
            raise InvalidParameter(f"{self}: give low <= 0 <= high, as numbers or one for each channel")

    def concerns(self, operation: Operation) -> bool:
        """The operation that sees the pixels."""
        return operation.is_first_of(self.operations)

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Share y g by how far each pixel moved its output from the lowest that the box allows."""
        weight = operation.settings["weight"].detach()
        with torch.enable_grad():
            corners = (x.detach(), _box(self.low, x), _box(self.high, x))
            x, low, high = leaves = [corner.requires_grad_() for corner in corners]
            z = operation.run(x, bias=None)
            z = z - operation.run(low, weight=weight.clamp(min=0), bias=None)
            z = z - operation.run(high, weight=weight.clamp(max=0), bias=None)
        shared = torch.autograd.grad(z, leaves, y * gradient / stabilized(z.detach(), self.epsilon))
        relevance = sum(leaf.detach() * share for leaf, share in zip(leaves, shared, strict=True))
        assert isinstance(relevance, Tensor)
        lost = int(((x == 0) & (relevance != 0)).sum())
        if lost:
            raise InvalidImage(
                f"{self}: {lost} pixels are exactly 0, where activation times gradient can hold no relevance; "
                "shift them by a hair, or choose another rule for the first layer"
            )
        return relevance / x.detach().masked_fill(x == 0, 1)


def _box(bound: float | tuple[float, ...], x: Tensor) -> Tensor:
    """A bound of the pixels, in the shape of the images."""
    values = x.new_tensor(bound).reshape(-1, *[1] * (x.dim() - 2))
    if len(values) not in (1, x.shape[1]):
        raise InvalidParameter(
            f"ZBoxLRP: {len(values)} bounds for {x.shape[1]} channels; give one for each, or one"
        )
    return values.expand_as(x).contiguous()
