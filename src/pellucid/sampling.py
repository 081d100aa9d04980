"""Samplings: at which points the gradient is taken, and how what is found there is combined.

Pure tensors, no model. A sampling makes ``draws`` points from each point it is given, and folds the
attributions found there into one. ``space`` says where the points lie: ``"input"`` at the image, ``"layer"``
at the layer that is explained (inside a layer's path everything lies at that layer).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidParameter, brief, require_choice, require_count
from .passes import exact
from .seeds import fold_in

Space = Literal["input", "layer"]
Moment = Literal["mean", "squared", "variance"]
Quadrature = Literal["gauss_legendre", "right", "left", "midpoint", "trapezoid", "linspace"]
Baseline = Literal["zero", "blur"] | float | Tensor

_FEW_NODES, _NEWTON_STEPS = 200, 4  # Newton's method doubles the digits of the first guess


class Sampling(ABC):
    """Which points to draw around a point, and how to fold what was found at them."""

    space: Space
    needs_reference: ClassVar[bool] = False
    is_random: ClassVar[bool] = False  # whether draws depend on the seed
    keeps_sum: bool  # whether the folded attribution sums to the mean of what the draws sum to

    @property
    @abstractmethod
    def draws(self) -> int:
        """How many points are drawn per point."""

    @property
    @abstractmethod
    def weights(self) -> np.ndarray | None:
        """The weight w_t of each draw (draws,), where the fold is a weighted sum; else None."""

    @abstractmethod
    def points(
        self, values: Tensor, references: Tensor | None, of: Tensor, draw: Sequence[int], keys: Sequence[int]
    ) -> Tensor:
        """Row i (n, ...): point ``of[i]`` of ``values`` (m, ...), moved to its draw number ``draw[i]``.

        ``references`` are one for all (1, ...) or one for each point (m, ...); ``keys[i]`` is the row's seed.
        """

    def goes_below_zero(self, drawn: bool) -> bool:
        """Whether the folded attribution may be negative; ``drawn``: whether that at the draws may."""
        return True

    def weights_of(self, draw: Tensor, like: Tensor) -> Tensor:
        """The weights of these draws alone, however many there are in all, in the precision of ``like``."""
        assert self.weights is not None
        # Equal weights are a view of one number (``broadcast_to``), so millions of draws take no memory.
        return like.new_tensor(self.weights[draw.cpu().numpy()])

    def terms(self, attribution: Tensor, draw: Tensor) -> tuple[Tensor, ...]:
        """What each draw adds to the running sums, for rows of ``attribution`` (n, ...)."""
        weights = self.weights_of(draw, attribution)
        return (attribution * weights.view(-1, *[1] * (attribution.dim() - 1)),)

    @abstractmethod
    def fold(self, sums: tuple[Tensor, ...], difference: Tensor | None) -> Tensor:
        """The attribution, from the finished sums and the difference of point and reference."""


@dataclass(frozen=True)
class Noise(Sampling):
    """Gaussian noise around a point: x + N(0, std^2), ``samples`` times (Nielsen et al., Eq. 2, 6, 7).

    ``std`` is in the units of the point (normalised pixels at the image), or with ``relative=True`` a fraction
    of max - min of each point (Adebayo et al., RectGrad). ``moment``: ``"mean"`` is SmoothGrad, ``"squared"``
    the mean of squares, ``"variance"`` VarGrad (population variance). An image's noise depends on its seed and
    the draw alone, never on its batch.
    """

    samples: int = 15
    std: float = 0.15
    relative: bool = False
    moment: Moment = "mean"
    space: Space = "input"
    is_random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("samples", self.samples)
        if not (isinstance(self.std, int | float) and 0 <= self.std < math.inf):
            raise InvalidParameter(f"std={brief(self.std)}: the noise's standard deviation must be 0 or more")
        require_choice("moment", self.moment, Moment)
        require_choice("space", self.space, Space)

    @property
    def keeps_sum(self) -> bool:  # type: ignore[override]
        """Only the mean does."""
        return self.moment == "mean"

    @property
    def draws(self) -> int:
        """The number of noisy samples."""
        return self.samples

    @property
    def weights(self) -> np.ndarray | None:
        """Equal ones, of the mean."""
        return np.broadcast_to(1 / self.samples, self.samples) if self.moment == "mean" else None

    def points(
        self, values: Tensor, references: Tensor | None, of: Tensor, draw: Sequence[int], keys: Sequence[int]
    ) -> Tensor:
        """Add each row's own noise."""
        values = values[of]
        scale: float | Tensor = self.std
        if self.relative:
            rows = values.flatten(1)
            spread = rows.amax(1) - rows.amin(1)
            scale = self.std * spread.view(-1, *[1] * (values.dim() - 1))
        return values + scale * noise_like(values, [fold_in(key, d) for key, d in zip(keys, draw, strict=True)])

    def goes_below_zero(self, drawn: bool) -> bool:
        """A mean of what may; squares and variances never."""
        return drawn and self.moment == "mean"

    def terms(self, attribution: Tensor, draw: Tensor) -> tuple[Tensor, ...]:
        """Values, squares, or both."""
        if self.moment == "mean":
            return super().terms(attribution, draw)
        share = 1 / self.samples
        if self.moment == "squared":
            return (attribution.square() * share,)
        # Sums of squares cancel: float64 keeps the variance of nearly constant attributions.
        value = exact(attribution)
        return value * share, value.square() * share

    def fold(self, sums: tuple[Tensor, ...], difference: Tensor | None) -> Tensor:
        """The chosen moment."""
        if self.moment == "variance":
            mean, squares = sums
            # Rounding may bring a variance of nothing below 0.
            return (squares - mean.square()).clamp_min(0)
        return sums[0]


@dataclass(frozen=True, eq=False)
class Path(Sampling):
    """The straight path from a reference x' to a point x: (x - x') sum_t w_t g(x' + a_t (x - x')).

    Integrated Gradients (Nielsen et al., Eq. 3) with g the gradient, their Eq. 8 and 9 with another g.
    ``baseline`` is the reference *image*, carried to the layer when the path lies at a hidden one:
    ``"zero"`` (of normalised pixels), ``"blur"`` (Gaussian, sigma 5), a number, or a tensor (C, H, W) or
    (B, C, H, W). ``quadrature``: ``"gauss_legendre"`` (Captum, Smooth Deep Saliency), ``"right"``
    (RectGrad), ``"left"``, ``"midpoint"``, ``"trapezoid"``, or ``"linspace"``, the plain mean over both ends
    (PAIR, Adebayo et al.).
    """

    steps: int = 50
    baseline: Baseline = "zero"
    quadrature: Quadrature = "gauss_legendre"
    space: Space = "layer"
    needs_reference: ClassVar[bool] = True
    keeps_sum: ClassVar[bool] = False  # type: ignore[misc]

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_baseline(self.baseline)
        require_choice("quadrature", self.quadrature, Quadrature)
        require_choice("space", self.space, Space)
        if self.quadrature in ("trapezoid", "linspace") and self.steps < 2:
            raise InvalidParameter(
                f"steps={self.steps}: quadrature={self.quadrature!r} needs both ends, 2 at least"
            )

    @property
    def draws(self) -> int:
        """The number of points on the path."""
        return self.steps

    @cached_property
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Places a_t on [0, 1] and weights w_t (sum 1) of the quadrature."""
        n = self.steps
        even = np.broadcast_to(1 / n, n)
        match self.quadrature:
            case "gauss_legendre":
                places, weights = _gauss_legendre(n)
                return (places + 1) / 2, weights / 2
            case "right":
                return np.arange(1, n + 1) / n, even
            case "left":
                return np.arange(n) / n, even
            case "midpoint":
                return (np.arange(n) + 0.5) / n, even
            case "linspace":
                return np.linspace(0, 1, n), even
            case _:
                ends = np.full(n, 1 / (n - 1))
                ends[[0, -1]] /= 2
                return np.linspace(0, 1, n), ends

    @property
    def weights(self) -> np.ndarray:
        """Those of the quadrature."""
        return self.nodes[1]

    def points(
        self, values: Tensor, references: Tensor | None, of: Tensor, draw: Sequence[int], keys: Sequence[int]
    ) -> Tensor:
        """Interpolate between each row's reference and its point: one product for all rows."""
        assert references is not None
        # Row i is a_i times its point plus (1 - a_i) times its
        # reference: a matrix of two numbers a row, times all ends.
        ends, row = torch.cat([values, references]).detach(), torch.arange(len(of), device=of.device)
        places = values.new_tensor(self.nodes[0][list(draw)])
        mixture = values.new_zeros(len(row), len(ends))
        mixture[row, of] = places
        # The remainder takes the only reference where there is one for all.
        mixture[row, len(values) + of % len(references)] = 1 - places
        rows = values.new_empty(len(row), *values.shape[1:])  # no view: the model may overwrite it
        with torch.autocast(values.device.type, enabled=False):
            torch.mm(mixture, ends.reshape(len(ends), -1), out=rows.view(len(row), -1))
        return rows

    def fold(self, sums: tuple[Tensor, ...], difference: Tensor | None) -> Tensor:
        """Multiply the integral by the length of the path."""
        assert difference is not None
        return sums[0] * difference


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]: NumPy's, and of many steps, whose matrix it would need, by Newton's method."""
    if n <= _FEW_NODES:
        return np.polynomial.legendre.leggauss(n)
    # The first guess is the usual one: the k-th root of P_n lies near cos(pi (k - 1/4) / (n + 1/2)).
    angle = np.pi * (np.arange((n + 1) // 2) + 0.75) / (n + 0.5)
    nodes = -np.cos(angle)  # those below 0; the others mirror them
    for _ in range(_NEWTON_STEPS):
        before, value = np.ones_like(nodes), nodes.copy()  # P_(k-1) and P_k at the nodes
        for k in range(1, n):
            moved = nodes * value
            before -= moved
            before *= -k / (k + 1)
            before += moved
            before, value = value, before  # ((2k + 1) x P_k - k P_(k-1)) / (k + 1)
        # Here P_n' follows from (1 - x^2) P_n' = n (P_(n-1) - x P_n).
        slope = n * (before - nodes * value) / (1 - nodes**2)
        nodes = nodes - value / slope
    # Of an odd number the middle node, 0, is not mirrored.
    weights, other = 2 / ((1 - nodes**2) * slope**2), slice(None, None, -1) if n % 2 == 0 else slice(-2, None, -1)
    return np.concatenate([nodes, -nodes[other]]), np.concatenate([weights, weights[other]])


def reference_images(baseline: Baseline, images: Tensor) -> Tensor:
    """The reference images of a baseline: (1, C, H, W) if it is the same for all images, else (B, C, H, W)."""
    if isinstance(baseline, Tensor):
        if baseline.layout != torch.strided or baseline.is_meta:
            raise InvalidParameter("the baseline is sparse or holds no values; give a dense tensor (x.to_dense())")
        reference = baseline.to(images)
        reference = reference if reference.dim() == 4 else reference.unsqueeze(0)
        if reference.shape[1:] != images.shape[1:] or len(reference) not in (1, len(images)):
            raise InvalidParameter(
                f"baseline of shape {tuple(baseline.shape)} does not fit images of shape {tuple(images.shape)}; "
                "give (C, H, W) or one per image"
            )
        return reference
    if baseline == "blur":
        # Torchvision takes as long to import as torch, and of all methods only this baseline needs it.
        from torchvision.transforms.functional import gaussian_blur

        # Reflection at the edges, by which the blur pads, needs fewer pixels of padding than the image has.
        taps = min(31, 2 * (min(images.shape[-2:]) - 1) + 1)
        blurred: Tensor = gaussian_blur(images, [taps, taps], [5.0, 5.0])
        return blurred
    return torch.full_like(images[:1], 0.0 if baseline == "zero" else float(baseline))


def noise_like(values: Tensor, keys: Sequence[int]) -> Tensor:
    """Standard normal noise, row i drawn from the seed ``keys[i]`` alone; drawn in float32 on the CPU, so
    that it is the same whatever the precision and device.
    """
    distinct = {
        key: torch.randn(values.shape[1:], generator=torch.Generator().manual_seed(key), dtype=torch.float32).to(
            values
        )
        for key in dict.fromkeys(keys)
    }
    # Without a dimension of rows it broadcasts over them, which saves the copies.
    if len(distinct) == 1:
        return distinct[keys[0]]
    return torch.stack([distinct[key] for key in keys])


def require_baseline(baseline: Baseline) -> None:
    """Raise ``InvalidParameter`` unless the baseline is a known name, a finite number or a finite tensor."""
    is_number = isinstance(baseline, int | float) and not isinstance(baseline, bool) and abs(baseline) < math.inf
    is_sound = (
        isinstance(baseline, Tensor) and baseline.layout == torch.strided and bool(baseline.isfinite().all())
    )
    if not (is_number or is_sound or (isinstance(baseline, str) and baseline in ("zero", "blur"))):
        raise InvalidParameter(f"baseline={brief(baseline)}: give 'zero', 'blur', or finite numbers")
