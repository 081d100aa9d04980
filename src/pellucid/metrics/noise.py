"""Noise of an attribution: total variation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidParameter
from .base import Axis, Case, MapMetric, ProcessedMapMetric

# Smooth Deep Saliency, Eq. 2: keeps a constant channel, whose variation is 0, from dividing by 0.
_EPSILON = 1e-6


def total_variation(attribution: Tensor, normalized: bool = True) -> Tensor:
    """Total variation of attributions (B, C, h, w), one value per image (B,), 0 or more; lower is smoother.

    Each channel z is centered and divided by max(mean|z - mean z|, 1e-6); the result is
    sum |vertical differences| + sum |horizontal differences| over C h w: the mean over channels of the
    variation per pixel (Smooth Deep Saliency, Eq. 1 and 2, with the released code's division by h w).
    ``normalized=False`` is the raw sum of absolute differences (RectGrad, Sec. 5.2).

    Raises:
        InvalidParameter: not a tensor (B, C, h, w).
    """
    if attribution.dim() != 4:
        raise InvalidParameter(f"attribution of shape {tuple(attribution.shape)}; give (batch, channels, h, w)")
    if not normalized:
        return _variation(attribution).sum(1)
    centered = attribution - attribution.mean((2, 3), keepdim=True)
    scale = centered.abs().mean((2, 3), keepdim=True).clamp_min(_EPSILON)
    return _variation(centered / scale).mean(1) / attribution[0, 0].numel()


def _variation(maps: Tensor) -> Tensor:
    """Anisotropic total variation of each channel (B, C)."""
    vertical = maps.diff(dim=2).abs().sum((2, 3))
    return vertical + maps.diff(dim=3).abs().sum((2, 3))


@dataclass(frozen=True, kw_only=True)
class TotalVariation(MapMetric):
    """Normalised total variation of the attribution at its own size, all channels (``total_variation``)."""

    name = "total_variation"
    axis: ClassVar[Axis] = "noise"
    unit = "variation per pixel"
    higher_is_better = False
    paper = "Smooth Deep Saliency, Sec. 4.4, Eq. 1 and 2"

    def maps(self, case: Case, layer: str) -> Tensor:
        """The attribution (B, C, h, w) itself."""
        return case.attributions[layer]

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The variation per pixel."""
        return total_variation(maps)


@dataclass(frozen=True, kw_only=True)
class RawTotalVariation(ProcessedMapMetric):
    """Sum of absolute differences of neighboring pixels of the heatmap, in the attribution's own units.

    ``channels`` and ``clip`` process the map first (``ProcessedMapMetric``).
    """

    name = "raw_total_variation"
    axis: ClassVar[Axis] = "noise"
    unit = "sum of differences"
    higher_is_better = False
    paper = "RectGrad, Sec. 5.2, Fig. 8b"

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The sum of differences of one channel."""
        return total_variation(maps[:, None], normalized=False)
