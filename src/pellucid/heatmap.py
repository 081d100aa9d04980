"""From an attribution (B, C, h, w) to a heatmap (B, H, W): channel reductions, up-sampling, clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InvalidParameter, require_choice

Channels = Literal["sum", "mean", "abs_sum", "abs_max", "positive_sum"]
Upsampling = Literal["nearest", "bilinear"]
Display = Literal["absolute", "diverging"]


def heatmap(
    attribution: Tensor | Mapping[str, Tensor],
    size: tuple[int, int] | None = None,
    channels: Channels = "mean",
    upsampling: Upsampling = "nearest",
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Reduce an attribution (B, C, h, w), or that of the only layer, to one map per image (B, H, W).

    ``channels``: ``mean``, signed (Smooth Deep Saliency); ``sum``, signed (RectGrad); ``abs_sum`` (Adebayo et
    al.); ``abs_max``; ``positive_sum``, the sum of max(attribution, 0) (RectGrad's final threshold).
    ``size`` (H, W) up-samples, ``nearest`` as in the papers or ``bilinear``; ``clip`` gives two percentiles
    for ``clip_percentiles``, applied before up-sampling.

    Raises:
        InvalidParameter: an unknown reduction or up-sampling, a shape that is not (B, C, h, w), several layers.
    """
    require_choice("channels", channels, Channels)
    require_choice("upsampling", upsampling, Upsampling)
    if isinstance(attribution, Mapping):
        attribution = _only(attribution)
    if attribution.dim() != 4:
        raise InvalidParameter(f"attribution of shape {tuple(attribution.shape)}; give (batch, channels, h, w)")
    reduced = _reduced(attribution, channels)
    if clip is not None:
        reduced = clip_percentiles(reduced, *clip)
    if size is None or tuple(size) == tuple(reduced.shape[-2:]):
        return reduced
    corners = None if upsampling == "nearest" else False
    return F.interpolate(reduced[:, None], size, mode=upsampling, align_corners=corners)[:, 0]


def _only(attributions: Mapping[str, Tensor]) -> Tensor:
    """The attribution of the only layer."""
    if len(attributions) != 1:
        names = ", ".join(map(repr, attributions)) or "none"
        raise InvalidParameter(f"attributions of the layers {names}; give those of one, attributions['LAYER']")
    return next(iter(attributions.values()))


def _reduced(attribution: Tensor, channels: Channels) -> Tensor:
    match channels:
        case "mean":
            return attribution.mean(1)
        case "sum":
            return attribution.sum(1)
        case "abs_sum":
            return attribution.abs().sum(1)
        case "abs_max":
            return attribution.abs().amax(1)
        case _:
            return attribution.clamp_min(0).sum(1)


def clip_percentiles(maps: Tensor, low: float, high: float) -> Tensor:
    """RectGrad's post-processing of maps (B, H, W), per image, with NumPy's linear percentiles.

    Values above the ``high`` percentile are clipped to it; values below the ``low`` one become 0 if that is
    positive, else the percentile itself. (0.5, 99.5) is "without threshold", (95, 99.5) "with threshold".
    """
    if not 0 <= low <= high <= 100:
        raise InvalidParameter(f"percentiles {low}, {high}: give 0 <= low <= high <= 100")
    rows = maps.flatten(1)
    floor, ceiling = _quantile(rows, low), _quantile(rows, high)
    clipped = torch.where(rows < floor, torch.where(floor > 0, 0.0, floor).to(rows), rows)
    return torch.minimum(clipped, ceiling).view_as(maps)


def _quantile(rows: Tensor, q: float) -> Tensor:
    # Not torch.quantile, which refuses more than 16 million elements.
    place = (rows.shape[1] - 1) * q / 100
    ordered = rows.sort(dim=1).values
    below = ordered[:, int(place), None]
    above = ordered[:, min(int(place) + 1, rows.shape[1] - 1), None]
    return torch.lerp(below, above, place - int(place))


def normalize(maps: Tensor, display: Display = "absolute", percentile: float = 99.0) -> Tensor:
    """Scale maps (B, H, W) for display (Adebayo et al.).

    ``absolute``: (|m| - min) / (percentile - min), clipped to [0, 1]; ``diverging``: m / percentile of |m|,
    clipped to [-1, 1], so that 0 stays 0. A constant map becomes 0 in the
    first, and its sign in the second.
    """
    require_choice("display", display, Display)
    rows = maps.flatten(1)
    magnitude = rows.abs()
    top = _quantile(magnitude, percentile)
    if display == "diverging":
        top = torch.where(top > 0, top, magnitude.amax(1, keepdim=True))
        return (rows / top.masked_fill(top == 0, 1)).clamp(-1, 1).view_as(maps)
    bottom = magnitude.amin(1, keepdim=True)
    span = top - bottom
    span = torch.where(span > 0, span, magnitude.amax(1, keepdim=True) - bottom)
    return ((magnitude - bottom) / span.masked_fill(span == 0, 1)).clamp(0, 1).view_as(maps)
