"""A frozen batch normalization as the one multiplication and addition that it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Rule, Run, is_differentiated
from .operations import Operation


@dataclass(frozen=True)
class FrozenBatchNorm(Rule):
    """Run an evaluated batch normalization as y = s x + t, with s = w / sqrt(var + eps), t = b - s mean.

    The same function and the same gradient R_in = s R, only cheaper: autograd's own keeps the input and, on
    the way back, also sums what the gradients of w and b would need. Nobody asks for these, but where w, b, mean
    or var are computed from the image, as in a conditional normalisation: there the gradient passes them, too.
    Every call runs under this rule; benchmarks/README.md tells what it saves.

    A normalization by the image's own mean and variance runs as it is, but on contiguous tensors both ways: on a
    CPU torch 2.14's backward pass takes a gradient (1, C, h, w) of the strides (C, 1, w C, C), as comes back from
    ``flatten(2).transpose(1, 2)`` of a single image, for one whose channels come last, and gives another's.
    """

    required: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    operations: ClassVar[frozenset[str]] = frozenset({"batch_norm", "instance_norm"})

    @property
    def alters_gradient(self) -> bool:
        """No: what propagates back is the normalisation's own gradient."""
        return False

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Scale and shift each channel, or normalize contiguous tensors."""
        if not _is_frozen(operation):
            y = run(x.contiguous())
            if y.requires_grad:
                y.register_hook(Tensor.contiguous)
            return y
        settings, shape = operation.settings, (1, -1, *[1] * (x.dim() - 2))
        computed = any(isinstance(value, Tensor) and is_differentiated(value) for value in settings.values())
        # Parameters may ask for gradients that nobody takes; without a graph of scale and shift none are computed.
        with torch.set_grad_enabled(computed):
            scale = (settings["running_var"] + settings["eps"]).rsqrt()
            if settings["weight"] is not None:
                scale = scale * settings["weight"]
            shift = -settings["running_mean"] * scale
            if settings["bias"] is not None:
                shift = shift + settings["bias"]
        scale, shift = scale.view(shape), shift.view(shape)
        if computed:
            return torch.addcmul(shift, x, scale)
        scaled: Tensor = _Affine.apply(x, scale, shift)
        return scaled


def _is_frozen(operation: Operation) -> bool:
    """Whether a normalization is by running statistics, of the input's own precision."""
    if operation.name != "batch_norm" or operation.settings["training"]:
        return False
    mean = operation.settings["running_mean"]
    return mean is not None and mean.dtype == operation.input.dtype


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None, None
