"""From an attribution (B, C, h, w) to a heatmap (B, H, W): channel reductions, up-sampling, clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InvalidMap, InvalidParameter, require_choice
from .kinds import of_kinds

Channels = Literal["sum", "mean", "abs_sum", "abs_max", "positive_sum"]
SIGNED = ("mean", "sum")  # reductions in which channels may cancel
Upsampling = Literal["nearest", "bilinear"]
Display = Literal["absolute", "diverging"]

_MAPS = {3: "(batch, H, W)"}
_ROUNDINGS = 32  # of its terms' magnitude: what a sum over channels of a gradient is off at most, nearly


def require_values(values: Tensor, name: str, forms: Mapping[int, str]) -> None:
    """Raise ``InvalidParameter`` unless values are floats in memory, some of them, of one of the dimensions."""
    is_held = values.layout == torch.strided and not values.is_meta
    if values.dim() not in forms or not values.is_floating_point() or not values.numel() or not is_held:
        raise InvalidParameter(
            f"{name} of {values.dtype} {tuple(values.shape)}; give floats {' or '.join(forms.values())}"
        )


def require_finite_maps(maps: Tensor, name: str = "the map") -> None:
    """Raise ``InvalidMap`` for an image's map that is not finite, which would get a color or an order."""
    broken = (~maps.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise InvalidMap(f"{name} of image {broken[0]} holds NaN or infinite values; clean or leave it out")


@of_kinds
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
    for ``clip_percentiles``, applied before up-sampling. A map that varies by no more than the rounding of its
    sums over channels has one value, its mean, or 0 where that is rounding, too (``cancels``): what orders its
    places is no finding. Halves are reduced, and given, in float32.

    Raises:
        InvalidParameter: an unknown reduction or up-sampling, a shape that is not (B, C, h, w), several layers.
        InvalidMap: values that are not finite, or too large to be summed over channels.
    """
    require_choice("channels", channels, Channels)
    require_choice("upsampling", upsampling, Upsampling)
    if isinstance(attribution, Mapping):
        attribution = _only(attribution)
    require_values(attribution, "attribution", {4: "(batch, channels, h, w)"})
    if size is not None and min(size) < 1:
        raise InvalidParameter(f"size={size}: give a height and a width of at least 1")
    attribution = attribution.to(torch.promote_types(attribution.dtype, torch.float32))  # halves overflow in sums
    # The same reduction of magnitudes tells how large the
    # numbers were that canceled, and so how large rounding is.
    magnitudes = _reduced(attribution.abs(), channels)
    if not bool(magnitudes.isfinite().all()):
        require_finite_maps(attribution, "the attribution")
        raise InvalidMap(
            f"the attribution's sums over channels overflow in {attribution.dtype}; scale it, or give doubles"
        )
    reduced = _leveled(_reduced(attribution, channels), magnitudes)
    if clip is not None:
        reduced = clip_percentiles(reduced, *clip)
    if size is None or tuple(size) == tuple(reduced.shape[-2:]):
        return reduced
    # Torch refuses ``align_corners`` for nearest up-sampling, even to say no.
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


def _leveled(maps: Tensor, magnitudes: Tensor) -> Tensor:
    """Maps (B, h, w), of one value where they vary by no more than the rounding of sums of these magnitudes."""
    spread, rounding = maps.amax((1, 2)) - maps.amin((1, 2)), _rounding(magnitudes)
    mean = maps.mean((1, 2))
    level = torch.where(mean.abs() <= rounding, 0, mean)
    return torch.where((spread <= rounding)[:, None, None], level[:, None, None], maps)


def _rounding(magnitudes: Tensor) -> Tensor:
    """What sums of these magnitudes (B, h, w) may be off, for each image (B,)."""
    precision = torch.finfo(torch.promote_types(magnitudes.dtype, torch.float32)).eps  # in which sums are taken
    return _ROUNDINGS * precision * magnitudes.amax((1, 2))


def cancels(attribution: Tensor) -> Tensor:
    """Of which images (B,) the channels of an attribution (B, C, h, w) sum to 0 at all places, but for rounding.

    So a gradient's do below a normalization over channels, which does not change when all channels are shifted
    together: at every hidden layer of most transformers.
    """
    magnitudes = attribution.abs().sum(1)
    return (attribution.sum(1).abs().amax((1, 2)) <= _rounding(magnitudes)) & (magnitudes.amax((1, 2)) > 0)


@of_kinds
def clip_percentiles(maps: Tensor, low: float, high: float) -> Tensor:
    """RectGrad's post-processing of maps (B, H, W), per image, with NumPy's linear percentiles.

    Values above the ``high`` percentile are clipped to it; values below the ``low`` one become 0 if that is
    positive, else the percentile itself. (0.5, 99.5) is "without threshold", (95, 99.5) "with threshold".
    """
    require_values(maps, "maps", _MAPS)
    require_finite_maps(maps)
    if not 0 <= low <= high <= 100:
        raise InvalidParameter(f"percentiles {low}, {high}: give 0 <= low <= high <= 100")
    rows = maps.flatten(1)
    floor, ceiling = _quantile(rows, low), _quantile(rows, high)
    # As the released code has it: below a positive percentile
    # there is nothing, below a negative one the percentile.
    clipped = torch.where(rows < floor, torch.where(floor > 0, 0.0, floor).to(rows), rows)
    return torch.minimum(clipped, ceiling).view_as(maps)


def _quantile(rows: Tensor, q: float) -> Tensor:
    # Not torch.quantile, which refuses more than 16 million elements.
    place = (rows.shape[1] - 1) * q / 100
    ordered = rows.sort(dim=1).values
    below = ordered[:, int(place), None]
    above = ordered[:, min(int(place) + 1, rows.shape[1] - 1), None]
    return torch.lerp(below, above, place - int(place))


@of_kinds
def normalize(maps: Tensor, display: Display = "absolute", percentile: float = 99.0) -> Tensor:
    """Scale maps (B, H, W) for display (Adebayo et al.).

    ``absolute``: (|m| - min) / (percentile - min), clipped to [0, 1]; ``diverging``: m / percentile of |m|,
    clipped to [-1, 1], so that 0 stays 0. A constant map becomes 0 in the
    first, and its sign in the second.
    """
    require_choice("display", display, Display)
    require_values(maps, "maps", _MAPS)
    require_finite_maps(maps)
    if not 0 <= percentile <= 100:
        raise InvalidParameter(f"percentile={percentile}: give one from 0 to 100")
    rows = maps.flatten(1)
    magnitude = rows.abs()
    top = _quantile(magnitude, percentile)
    if display == "diverging":
        # A sparse map has a percentile of 0, which is no scale; its largest value then is one.
        top = torch.where(top > 0, top, magnitude.amax(1, keepdim=True))
        return (rows / top.masked_fill(top == 0, 1)).clamp(-1, 1).view_as(maps)
    bottom = magnitude.amin(1, keepdim=True)
    span = top - bottom
    span = torch.where(span > 0, span, magnitude.amax(1, keepdim=True) - bottom)
    return ((magnitude - bottom) / span.masked_fill(span == 0, 1)).clamp(0, 1).view_as(maps)
