"""Rules for pooling: proportional redistribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidModel
from .base import BackwardRule, Run
from .operations import Operation

MAX_POOLS = frozenset({"max_pool2d", "adaptive_max_pool2d"})
AVERAGE_POOLS = frozenset({"avg_pool2d", "adaptive_avg_pool2d"})


@dataclass(frozen=True)
class ProportionalPooling(BackwardRule):
    """Proportional redistribution: R_i = x_i sum_w g_w / sum_{j in w} x_j over the windows w that hold i.

    Computed as RectGrad's Listing 3 does: z = averagepool(x) + 1e-10; R = x * averagepool'(g / z). An all-zero
    window passes nothing. The paper redistributes through max-pooling alone; ``average=True`` does the same
    for average pooling, whose own backward pass would spread g evenly.
    """

    average: bool = False
    operations: ClassVar[frozenset[str]] = MAX_POOLS | AVERAGE_POOLS

    def concerns(self, operation: Operation) -> bool:
        """Max-pooling, and average pooling if asked for."""
        return self.average or operation.name in MAX_POOLS

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """Share the gradient of each window in proportion to its inputs."""
        average = _window_average(operation)
        with torch.enable_grad():
            # Only the transposed average pooling is wanted, which
            # autograd gives for any window, stride and padding.
            leaf = x.detach().requires_grad_()
            z = average(leaf)
            (shared,) = torch.autograd.grad(z, leaf, gradient / (z.detach() + 1e-10))
        return x * shared


def _window_average(operation: Operation) -> Run:
    """The average pooling over the windows of a pooling operation."""
    if operation.name == "max_pool2d":
        settings: dict[str, Any] = dict(operation.settings)
        # ``F.avg_pool2d`` has no dilation.
        if settings.pop("dilation") not in (1, (1, 1), [1, 1]):
            raise InvalidModel("proportional redistribution is not defined for a dilated max-pooling")
        return lambda x: F.avg_pool2d(x, **settings)
    if operation.name == "adaptive_max_pool2d" and "dim" in operation.settings:  # written as amax((2, 3))
        return lambda x: x.mean(**operation.settings)
    if operation.name == "adaptive_max_pool2d":
        return lambda x: F.adaptive_avg_pool2d(x, **operation.settings)
    return operation.run
