"""Rules for the rectifier: guided backpropagation, deconvolution, rectified gradient.

All three are stated on the activation a = f(z) and the gradient R that arrives at it, so they hold for other
activations of a hidden layer, too (Nielsen et al., Eq. 4): for all that look like a ReLU (``RECTIFIERS``).
Shrinkage and a threshold other than 0 beside these are warned of; a tanh or a sigmoid, which may be a gate, is
left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidModel, InvalidParameter, counted, require_choice
from .base import BackwardRule
from .operations import RECTIFIERS, Operation

SAMPLE = 2048  # elements of a row from which a percentile is first guessed

Gate = Literal["PR1", "PR2", "PR3", "PR4", "mod"]
Interpolation = Literal["nearest", "linear"]


@dataclass(frozen=True)
class GuidedReLU(BackwardRule):
    """Guided backpropagation: R_in = 1[a > 0] 1[R > 0] R (Nielsen et al., Eq. 4; RectGrad, Claim 2)."""

    keeps_sign: ClassVar[bool] = False
    reads_input: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = RECTIFIERS

    def propagate(self, operation: Operation, x: Tensor | None, y: Tensor, gradient: Tensor) -> Tensor:
        """Pass positive gradients of active units."""
        return _of_active(gradient, y).clamp_min_(0)


def _of_active(gradient: Tensor, activation: Tensor) -> Tensor:
    """1[a > 0] R, fused into one pass over memory."""
    passed: Tensor = torch.ops.aten.threshold_backward(gradient, activation, 0)
    return passed


@dataclass(frozen=True)
class DeconvReLU(BackwardRule):
    """Deconvolution: R_in = 1[R > 0] R, whatever the unit's activation (RectGrad, Claim 1)."""

    keeps_sign: ClassVar[bool] = False
    reads_input: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = RECTIFIERS

    def propagate(self, operation: Operation, x: Tensor | None, y: Tensor, gradient: Tensor) -> Tensor:
        """Pass positive gradients."""
        # Unlike guided backpropagation it does not ask whether the unit was active.
        return gradient.clamp_min(0)


@dataclass(frozen=True)
class RectifiedReLU(BackwardRule):
    """Rectified Gradient: R_in = 1[s > tau] R, with tau a percentile of s in this layer, per image.

    The score s is a R (``PR1``, RectGrad Sec. 4.1), |a R| (``PR2``), a (``PR3``) or R (``PR4``, Appendix B);
    ``mod`` is RectGradMod: PR1 at the last rectifier, PR2 at all others. ``q`` in [0, 100] is the percentile
    over all units of the layer; ``interpolation="nearest"`` is the released code's, with index
    round-half-even((N-1)(1-q/100)) from the top. A number for ``tau`` replaces the percentile. The comparison
    is strict, so q=98 lets nothing through a layer of 25 units or fewer. There is no further gate on z > 0
    (Listing 1): a negative tau lets dead units pass.
    """

    q: float = 98.0
    interpolation: Interpolation = "nearest"
    tau: float | None = None
    gate: Gate = "PR1"
    of_images: ClassVar[bool] = True
    keeps_sign: ClassVar[bool] = False
    reads_input: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = RECTIFIERS

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 100:
            raise InvalidParameter(f"RectifiedReLU: q={self.q} is not a percentile; give 0 <= q <= 100")
        require_choice("interpolation", self.interpolation, Interpolation)
        require_choice("gate", self.gate, Gate)

    def propagate(self, operation: Operation, x: Tensor | None, y: Tensor, gradient: Tensor) -> Tensor:
        """Pass the gradient of units whose score exceeds the threshold."""
        gate = self.gate
        if gate == "mod":
            gate = "PR1" if operation.is_last_of(self.operations) else "PR2"
        if self.tau is None:
            # A fixed tau compares unit by unit, so it needs no rows of images.
            self._require_rows(operation, y)
        score = _score(gate, y, gradient)
        tau = self.tau if self.tau is not None else percentile(score, self.q, self.interpolation)
        return _where_above(tau, score, gradient)

    def _require_rows(self, operation: Operation, y: Tensor) -> None:
        """Refuse an activation whose first dimension is not the images': a percentile is one of each image."""
        if operation.count is not None and (y.dim() == 0 or len(y) != operation.count):
            where = f" in {operation.modules[-1]!r}" if operation.modules else ""
            raise InvalidModel(
                f"{self} takes a percentile of each image's activations, but {operation.name}{where} gives "
                f"{tuple(y.shape)} for {counted(operation.count, 'image')}: no first dimension of images, as "
                "where tokens come first or patches are folded into the batch. Give a threshold tau, write the "
                "model with the batch first, or confine the rule to modules that keep it there"
            )


def _where_above(tau: Tensor | float, score: Tensor, gradient: Tensor) -> Tensor:
    """1[s > tau] R, written over the score: in memory of its own it takes twice as long on a large layer."""
    return score.gt_(tau).mul_(gradient)


def _score(gate: Gate, activation: Tensor, gradient: Tensor) -> Tensor:
    """Each unit's importance, in memory of its own, since the gate is then computed in place."""
    match gate:
        case "PR1":
            return activation * gradient
        case "PR2":
            return (activation * gradient).abs_()
        case "PR3":
            return activation.clone()
        case _:
            return gradient.clone()


def percentile(values: Tensor, q: float, interpolation: Interpolation = "nearest") -> Tensor:
    """The q-th percentile of each row of ``values`` (B, ...), shaped (B, 1, ...) to compare with them.

    ``nearest``: the element at index round-half-even((N-1)(1-q/100)) of the descending order, which is
    TensorFlow 1's default; ``linear``: NumPy's.
    """
    rows = values.flatten(1)
    shape = (-1, *[1] * (values.dim() - 1))
    last = rows.shape[1] - 1
    if interpolation == "nearest":
        # Python's ``round`` rounds half to even, as TensorFlow does.
        return _descending(rows, round(last * (100 - q) / 100)).view(shape)
    place = last * (100 - q) / 100
    above, below = _descending(rows, int(place)), _descending(rows, min(int(place) + 1, last))
    return torch.lerp(above, below, place - int(place)).view(shape)


def _descending(rows: Tensor, index: int) -> Tensor:
    """The element at ``index`` of each row's descending order."""
    size = rows.shape[1]
    if rows.device.type != "cpu" or size < 8 * SAMPLE or rows.dtype is torch.bfloat16:  # NumPy has no bfloat16
        return rows.kthvalue(size - index, dim=1).values
    # On a CPU selecting from the whole row is the costliest step of Rectified Gradient. A sample tells a pivot
    # a little below the wanted element; what lies above it is short, and holds the element. NumPy picks it out of
    # the row several times as fast as torch.
    step = size // SAMPLE
    sample, expected = rows[:, ::step], index / step
    # The rank in a sample varies by about the root of its expectation; four of these make a miss very rare.
    place = min(int(expected + 4 * expected**0.5) + 2, sample.shape[1] - 1)
    pivots = sample.kthvalue(sample.shape[1] - place, dim=1).values.tolist()
    found = [_select(row, pivot, index) for row, pivot in zip(rows.detach().numpy(), pivots, strict=True)]
    return rows.new_tensor(found)


def _select(row: NDArray[Any], pivot: float, index: int) -> float:
    """The element at ``index`` of the descending order, which the pivot should be a little below."""
    top = row[row > pivot]
    if len(top) <= index:
        # At most ``index`` elements exceed the pivot; if with its equals there are more, it is the element itself.
        if np.count_nonzero(row >= pivot) > index:
            return pivot  # many elements share its value
        top = row  # the sample misled
    place = len(top) - 1 - index
    return float(np.partition(top, place)[place])
