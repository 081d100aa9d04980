"""Noise of an attribution: total variation, and the checkerboard of strided layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidParameter, require_choice, require_count
from ..heatmap import Channels, heatmap, require_values
from ..kinds import of_kinds
from ..passes import exact
from .base import Axis, Case, MapMetric, ProcessedMapMetric

# Smooth Deep Saliency, Eq. 2: keeps a constant channel, whose variation is 0, from dividing by 0.
_EPSILON = 1e-6
_ROUNDING = 1e-6  # of the largest value: a map that varies less is constant


@of_kinds
def total_variation(attribution: Tensor, normalized: bool = True) -> Tensor:
    """Total variation of attributions (B, C, h, w), one value per image (B,), 0 or more; lower is smoother.

    Each channel z is centered and divided by max(mean|z - mean z|, 1e-6); the result is
    sum |vertical differences| + sum |horizontal differences| over C h w: the mean over channels of the
    variation per pixel (Smooth Deep Saliency, Eq. 1 and 2, with the released code's division by h w).
    ``normalized=False`` is the raw sum of absolute differences (RectGrad, Sec. 5.2).

    Raises:
        InvalidParameter: not a tensor (B, C, h, w).
    """
    require_values(attribution, "attribution", {4: "(batch, channels, h, w)"})
    if not normalized:
        return _variation(attribution).sum(1)
    centered = attribution - attribution.mean((2, 3), keepdim=True)
    scale = centered.abs().mean((2, 3), keepdim=True).clamp_min(_EPSILON)
    return _variation(centered / scale).mean(1) / attribution[0, 0].numel()


def _variation(maps: Tensor) -> Tensor:
    """Anisotropic total variation of each channel (B, C)."""
    vertical = maps.diff(dim=2).abs().sum((2, 3))
    return vertical + maps.diff(dim=3).abs().sum((2, 3))


@of_kinds
def checkerboard(maps: Tensor, period: int = 2) -> Tensor:
    """The share (B,) of the energy of maps (B, H, W) that repeats every ``period`` pixels, in [0, 1].

    The energy of the Fourier transform at the frequencies k / period, but for the mean, over that at all
    frequencies but the mean. By Parseval's theorem it is the variance of the means of the period^2 places of a
    tile over the variance of the map. 1 for any pattern of that period, (period^2 - 1) / (H W - 1) on average for
    white noise, NaN for a constant map. Rows and columns beyond the last whole tile are left out. What repeats
    every 2 pixels also repeats every 4.

    Raises:
        InvalidParameter: not a tensor (B, H, W); a period below 2, or larger than half a side.
    """
    require_count("period", period, 2)
    if maps.dim() != 3 or min(maps.shape[1:]) < 2 * period:
        raise InvalidParameter(
            f"maps of shape {tuple(maps.shape)}; give (batch, h, w) of at least {2 * period} pixels a side, "
            f"twice the period of {period}"
        )
    rows, columns = (side // period * period for side in maps.shape[1:])
    centered = exact(maps[:, :rows, :columns])
    centered = centered - centered.mean((1, 2), keepdim=True)
    # These are (B, tile row, row within, tile column, column within): the mean over tiles leaves each place's.
    tiles = centered.unflatten(1, (-1, period)).unflatten(3, (-1, period))
    energy = centered.square().mean((1, 2))
    share: Tensor = tiles.mean((1, 3)).square().mean((1, 2)) / energy
    return share.masked_fill(energy <= (_ROUNDING * exact(maps).abs().amax((1, 2))).square(), torch.nan)


@dataclass(frozen=True, kw_only=True)
class TotalVariation(MapMetric):
    """Normalised total variation of the attribution at its own size, all channels (``total_variation``).

    Undefined where every channel is constant: such a map is without noise, but tells no place from another.
    """

    name = "total_variation"
    axis: ClassVar[Axis] = "noise"
    unit = "variation per pixel"
    ends = (0, None)
    higher_is_better = False
    paper = "Smooth Deep Saliency, Sec. 4.4, Eq. 1 and 2"
    undefined = "the map is constant"

    def maps(self, case: Case, layer: str) -> Tensor:
        """The attribution (B, C, h, w) itself."""
        return case.attributions[layer]

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The variation per pixel."""
        spread = (maps.amax((2, 3)) - maps.amin((2, 3))).amax(1)
        constant = spread <= _ROUNDING * maps.abs().amax((1, 2, 3))
        return total_variation(maps).masked_fill(constant, torch.nan)


@dataclass(frozen=True, kw_only=True)
class RawTotalVariation(ProcessedMapMetric):
    """Sum of absolute differences of neighboring pixels of the heatmap, in the attribution's own units.

    ``channels`` and ``clip`` process the map first (``ProcessedMapMetric``).
    """

    name = "raw_total_variation"
    axis: ClassVar[Axis] = "noise"
    unit = "sum of differences"
    ends = (0, None)
    higher_is_better = False
    paper = "RectGrad, Sec. 5.2, Fig. 8b"

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The sum of differences of one channel."""
        return total_variation(maps[:, None], normalized=False)


@dataclass(frozen=True, kw_only=True)
class Checkerboard(MapMetric):
    """How much of the heatmap, at its own size, repeats every ``period`` pixels (``checkerboard``).

    ``channels`` reduces the attribution, None as the case does. Strided layers print their pattern on the size of
    the gradient, while its sign changes from place to place, so that of a signed map nothing may repeat at all:
    magnitudes are the default. Undefined where the
    map is constant or its sides are below twice the period.
    """

    period: int = 2
    channels: Channels | None = "abs_sum"

    name = "checkerboard"
    axis: ClassVar[Axis] = "noise"
    unit = "share of energy"
    ends = (0, 1)
    higher_is_better = False
    paper = "Smooth Deep Saliency, Sec. 2.1, Fig. 1; as a number ours"
    undefined = "the map is constant, or smaller than two of its periods"

    def __post_init__(self) -> None:
        require_count("period", self.period, 2)
        if self.channels is not None:
            require_choice("channels", self.channels, Channels)

    def maps(self, case: Case, layer: str) -> Tensor:
        """The heatmap (B, h, w) at the layer's own size."""
        return heatmap(case.attributions[layer], None, self.channels or case.channels)

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The share of energy."""
        if min(maps.shape[1:]) < 2 * self.period:
            return maps.new_full((len(maps),), torch.nan)
        return checkerboard(maps, self.period)
