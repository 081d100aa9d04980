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

Two rules see to what transformers and gates add: ``NormalizationLRP`` takes a divisor for a constant,
``AttentionLRP`` shares the relevance of a product. What is conserved then sums to the logit, but for the shares of
biases and of epsilon; the residual says how much that is.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidImage, InvalidParameter, RuleWarning, require_choice
from .base import BackwardRule, Rule, Run, is_differentiated, transform_arriving
from .operations import ACTIVATIONS, AFFINE, PRODUCTS, Operation

Share = Literal["gate", "half"]


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
    """Epsilon-LRP: R_in = R (f(z) - f(0)) / (z + epsilon sign(z)) at every activation; sign(0) = 1.

    Multiplied by a layer's activation, the gradient so modified is that layer's relevance under the
    epsilon rule (Ancona et al. 2018, Prop. 1); biases absorb their share, and f(0), which of these activations
    softplus alone has, is one. As in RectGrad's baselines the
    logit's own linear layer has no epsilon. Of gates, attention and normalizations see the rules below.
    """

    conserves: ClassVar[bool] = True
    epsilon: float = 1e-4
    operations: ClassVar[frozenset[str]] = ACTIVATIONS

    def __post_init__(self) -> None:
        _require_positive(self, "epsilon", self.epsilon)

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Multiply the gradient by the slope of the chord from the origin, stabilised by epsilon."""
        # The affine operation below needs no rule of its own: with R = a g its epsilon
        # rule, w R / (z + epsilon sign(z)), is the plain gradient of what is returned here.
        if operation.name == "softplus":  # else f(z) / z has no bound near 0
            y = y - operation.run(torch.zeros_like(x))
        return gradient * (y * stabilized(x, self.epsilon).reciprocal_())


class _LayerLRP(BackwardRule):
    """A rule of LRP at layers: convolutions and linear layers, however spelled, by weights that are constants.

    A layer by weights of the image's own is a product of activations. Fused attention, or a recurrent layer, runs
    part by part: with constant queries it begins with a layer.
    """

    conserves: ClassVar[bool] = True
    of_parts: ClassVar[bool] = True
    operations: ClassVar[frozenset[str]] = AFFINE

    def concerns(self, operation: Operation) -> bool:
        """Layers whose weights the image has no part in."""
        return not any(operation.varies[1:])


@dataclass(frozen=True)
class GammaLRP(_LayerLRP):
    """Gamma-LRP: R_i = sum_j (c_ij + gamma c_ij^s) / (z_j + gamma z_j^s) R_j at convolutions and linear layers.

    The contributions c_ij = x_i w_ij sum to z_j, with the bias. Those of z_j's own sign s, with sum z_j^s,
    are favored by ``gamma`` >= 0. For inputs that are not negative and z_j > 0, which is all that a ReLU passes
    on, it is the rule of Montavon et al. 2019, with w + gamma w^+ for w; for others its generalisation by Andeol
    et al. 2021. ``epsilon`` keeps the divisor from 0.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

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
class AlphaBetaLRP(_LayerLRP):
    """Alpha-beta-LRP: R_i = sum_j (alpha c_ij^+ / z_j^+ - beta c_ij^- / z_j^-) R_j, with alpha - beta = 1.

    At convolutions and linear layers (Bach et al. 2015), with the positive and negative contributions
    c_ij = x_i w_ij and their sums z_j^+ and z_j^-, to which the bias belongs by its sign. ``beta`` >= 0;
    ``epsilon`` keeps the divisors from 0. A unit with contributions of one sign alone does not conserve relevance.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6

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
            # One backward pass serves both divisors.
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

    # A contribution x w is positive where both have one sign: x^+ w^+ + x^- w^-, and negative where they differ.
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    biases = (None, None) if bias is None else (bias.detach().clamp(min=0), bias.detach().clamp(max=0))
    return total(up, down, biases[0]), total(down, up, biases[1])


@dataclass(frozen=True)
class ZBoxLRP(_LayerLRP):
    """Z-box-LRP (z^B) of pixels in [low, high]: R_i = sum_j b_ij / sum_k b_kj R_j.

    Here b_ij = x_i w_ij - low w_ij^+ - high w_ij^-. It acts at the model's first convolution or linear layer
    (Montavon et al. 2017). ``low`` <= 0 <= ``high`` are the least and the greatest value that a pixel may have
    after preprocessing: a number, or one for each channel. The gradient is R_i / x_i, so a pixel that is exactly 0
    cannot hold its relevance: ``InvalidImage`` is raised. ``epsilon`` keeps the divisor from 0.
    """

    asks_for_first: ClassVar[bool] = True
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _require_positive(self, "epsilon", self.epsilon)
        lows, highs = (torch.tensor(bound) for bound in (self.low, self.high))
        if lows.dim() > 1 or highs.dim() > 1 or (lows > 0).any() or (highs < 0).any():
            raise InvalidParameter(f"{self}: give low <= 0 <= high, as numbers or one for each channel")

    def concerns(self, operation: Operation) -> bool:
        """The operation that sees the pixels."""
        return super().concerns(operation) and operation.is_first_of(self.operations)

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Share y g by how far each pixel moved its output from the lowest that the box allows."""
        weight = operation.settings["weight"].detach()
        with torch.enable_grad():
            corners = (x.detach(), _box(self.low, operation, x), _box(self.high, operation, x))
            x, low, high = leaves = [corner.requires_grad_() for corner in corners]
            z = operation.run(x, bias=None)
            z = z - operation.run(low, weight=weight.clamp(min=0), bias=None)
            z = z - operation.run(high, weight=weight.clamp(max=0), bias=None)
        self._warn_if_outside(*corners)
        # z is linear in image, low and high, so its derivatives
        # times these are the three sums of b_ij R_j / sum_k b_kj.
        shared = torch.autograd.grad(z, leaves, y * gradient / stabilized(z.detach(), self.epsilon))
        relevance = sum(leaf.detach() * share for leaf, share in zip(leaves, shared, strict=True))
        assert isinstance(relevance, Tensor)
        # The readout multiplies by the pixel again, which only
        # gives back what was divided by it where it is not 0.
        lost = int(((x == 0) & (relevance != 0)).sum())
        if lost:
            raise InvalidImage(
                f"{self}: {lost} pixels are exactly 0, where activation times gradient can hold no relevance; "
                "shift them by a hair, or choose another rule for the first layer"
            )
        return relevance / x.detach().masked_fill(x == 0, 1)

    def _warn_if_outside(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Warn of pixels outside of the box, as where the model itself normalizes the images."""
        slack = 1e-3 * (high - low)
        outside = int(((x < low - slack) | (x > high + slack)).sum())
        if outside:
            message = (
                f"{outside} of the {x.numel()} values that the first layer sees, from {float(x.min()):.3g} to "
                f"{float(x.max()):.3g}, lie outside of the box of {self}: give the bounds of what arrives there, "
                "after the model's own normalization, too"
            )
            warnings.warn(RuleWarning(message), stacklevel=2)


def _box(bound: float | tuple[float, ...], operation: Operation, x: Tensor) -> Tensor:
    """A bound of the pixels, in the shape of the images: channels come before a convolution's places, or last."""
    # A convolution's weight has as many dimensions of places
    # after the channels as its input; a linear layer's none.
    values, after = x.new_tensor(bound).flatten(), operation.settings["weight"].dim() - 2
    channels = x.shape[-1 - after]
    if len(values) not in (1, channels):
        raise InvalidParameter(
            f"ZBoxLRP: {len(values)} bounds for the {channels} channels that {operation.name} sees; give one for "
            "each, or one"
        )
    return values.reshape(-1, *[1] * after).expand_as(x).contiguous()


@dataclass(frozen=True)
class NormalizationLRP(Rule):
    """A divisor is a constant: y = x / s propagates g_x = g / s, and nothing to s.

    So layer, group, instance and root-mean-square normalizations, however spelled, are affine: the LN-rule of Ali
    et al. 2022, in AttnLRP's terms the identity rule (Achtibat et al. 2024, Prop. 3.4). By their own gradient
    activation times gradient would sum to 0, since a normalization does not depend on the scale of x.
    """

    conserves: ClassVar[bool] = True
    of_parts: ClassVar[bool] = True
    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = frozenset({"reciprocal", "rsqrt", "pow"})

    def concerns(self, operation: Operation) -> bool:
        """Powers that divide."""
        exponent = operation.settings.get("exponent", -1)
        return not isinstance(exponent, Tensor) and exponent < 0

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run it as a constant."""
        return _written(operation, x, run(x.detach()))


def _written(operation: Operation, x: Tensor, y: Tensor) -> Tensor:
    """The result, written over the input where the model did so."""
    return x.copy_(y) if operation.inplace else y


@dataclass(frozen=True)
class AttentionLRP(Rule):
    """Products of activations, and softmax: who gets the relevance R of y = a b, and of attention's weights.

    ``share="gate"``: where one factor is a gate or a weight, which is the output of a softmax, a sigmoid or
    another bounded function, it is a constant, and the other factor gets R (signal-take-all, Arras et al. 2019;
    for attention the AH-rule of Ali et al. 2022). Else, and with ``share="half"`` always, each of n factors gets
    R / n: AttnLRP's R_a = a b R / (2 y) (Achtibat et al. 2024, Prop. 3.2 and 3.3, epsilon = 0). Softmax then
    propagates its gradient, which times its input is AttnLRP's R_i = x_i (R_i - s_i sum_j R_j) (Prop. 3.1) and
    conserves nothing.
    """

    share: Share = "gate"
    conserves: ClassVar[bool] = True
    of_parts: ClassVar[bool] = True
    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = PRODUCTS | AFFINE | {"softmax"}

    def __post_init__(self) -> None:
        require_choice("share", self.share, Share)

    def concerns(self, operation: Operation) -> bool:
        """Products of several activations, and softmax if its output is a constant."""
        if operation.name == "softmax":  # that of each image's row may be the model's probabilities
            shape, count = operation.input.shape, operation.count
            return self.share == "gate" and (len(shape) > 2 or (len(shape) == 2 and count not in (None, shape[0])))
        return sum(operation.varies) > 1

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run it with gates as constants, or share what arrives."""
        if operation.name == "softmax":
            # Attention's weights become constants here, so that at
            # the product with the values only these have a graph.
            return run(x.detach())
        factors = (x, *operation.others)
        # Where both look like gates alike, as in tanh(a) tanh(b),
        # neither is one more than the other and both share.
        gated = [_gating(factor.grad_fn) for factor in factors]
        if self.share == "gate" and min(gated) < max(gated):
            constant = [x.detach() if gate == max(gated) else x for x, gate in zip(factors, gated, strict=True)]
            return _written(operation, x, operation.run(*constant))
        # The gradient of a product gives each factor all of R,
        # as a g_a = b g_b = y g; divided, the shares sum to R.
        number, y = sum(map(is_differentiated, factors)), run(x.clone() if operation.inplace else x)
        transform_arriving(y, lambda gradient: gradient / number)
        return _written(operation, x, y)


# What autograd, or a rule, calls bounded functions: those that only gate, and those that also activate.
_GATES = frozenset({"SigmoidBackward0", "HardsigmoidBackward0", "SoftmaxBackward0", "sigmoid", "hardsigmoid"})
_BOUNDED = frozenset({"TanhBackward0", "ErfBackward0", "HardtanhBackward0", "ClampBackward1", "tanh", "relu6"}) | {
    "hardtanh",
    "softsign",
    "clamp",
}
# What scales, shifts or reorders alone.
_KEEPING = tuple(
    f"{kind}Backward"
    for kind in (
        *("Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Clone", "Alias"),
        *("View", "UnsafeView", "Reshape", "Expand", "Repeat"),
        *(
            "Where",
            "MaskedFill",
            "Slice",
            "Select",
            "Split",
            "Unbind",
            "Transpose",
            "T",
            "Permute",
            "Squeeze",
            "Unsqueeze",
        ),
    )
)


def _gating(node: Any) -> int:
    """How much a tensor looks like a gate: 2 of a sigmoid, 1 of another bounded function, else 0."""
    # Between a sigmoid and its product there may be reshapings, and scales such as those of a dropout.
    while node is not None:
        name = getattr(node, "operation", node.name())
        if name in _GATES or name in _BOUNDED:
            return 2 if name in _GATES else 1
        above = [other for other, _ in node.next_functions if other is not None]
        if not name.startswith(_KEEPING) or len(above) != 1:
            return 0
        node = above[0]
    return 0
