"""Layer-wise relevance propagation as a gradient rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidParameter
from .base import BackwardRule
from .operations import ACTIVATIONS, Operation


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
        if self.epsilon <= 0:
            raise InvalidParameter(f"EpsilonLRP: epsilon={self.epsilon}; give a positive number")

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Multiply the gradient by the slope of the chord from the origin, stabilised by epsilon."""
        stabiliser = (x >= 0).to(x).mul_(2 * self.epsilon).sub_(self.epsilon)
        return stabiliser.add_(x).reciprocal_().mul_(y).mul_(gradient)
